// Normalization Form C against strings typed from Unicode Standard Annex 15 and the Hangul section of the
// standard.
#include "io/nfc.h"

#include <gtest/gtest.h>

namespace trivium::io {
namespace {

struct Pair {
  const char *text, *normal;
};

TEST(Nfc, MatchesTheStandardsExamples) {
  const Pair pairs[] = {
      {"", ""},
      {"plain ASCII", "plain ASCII"},
      {"A\u030A", "\u00C5"},                   // composes
      {"\u212B", "\u00C5"},                    // singleton: the Angstrom sign
      {"\u1E9B\u0323", "\u1E9B\u0323"},        // stays
      {"s\u0323\u0307", "\u1E69"},             // two marks
      {"s\u0307\u0323", "\u1E69"},             // in the other order
      {"\u0958", "\u0915\u093C"},              // excluded from composition
      {"\u0340", "\u0300"},                    // singleton mark
      {"a\u0305\u0300", "a\u0305\u0300"},      // an equal class in between blocks
      {"\u1100\u1161", "\uAC00"},              // Hangul: leading, vowel
      {"\u1100\u1161\u11A8", "\uAC01"},        // and trailing
      {"\uAC00\u11A7", "\uAC00\u11A7"},        // which U+11A7 is not
      {"\U0001D15E", "\U0001D157\U0001D165"},  // beyond the basic plane
      {"\u0344", "\u0308\u0301"},              // starts with a mark
      {"e\u0301\u0301", "\u00E9\u0301"},
  };
  for (const Pair& p : pairs) EXPECT_EQ(to_nfc(p.text), p.normal) << p.text;
}

TEST(Nfc, IsIdempotent) {
  for (const char* text : {"s\u0307\u0323\u1100\u1161\u11A8x\u0315\u0300", "\u0344\u0344", "\u1E9B\u0323"})
    EXPECT_EQ(to_nfc(to_nfc(text)), to_nfc(text));
}

TEST(Nfc, KeepsIllFormedBytesInPlace) {
  EXPECT_EQ(to_nfc("A\xFF\u030A"), "A\xFF\u030A");
  EXPECT_EQ(to_nfc("A\u030A\xE2\x82"), "\u00C5\xE2\x82");
  EXPECT_EQ(to_nfc("\x80"), "\x80");
}

}  // namespace
}  // namespace trivium::io
