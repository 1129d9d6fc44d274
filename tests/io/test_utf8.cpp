// UTF-8: what is well-formed, how ill-formed text is cut, and what a stream may hold back.
#include <gtest/gtest.h>

#include <random>

#include "io/tokenizer.h"
#include "io/utf8.h"

namespace trivium::io {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

TEST(Utf8, EveryCodePointSurvivesEncodingAndDecoding) {
  for (int32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, static_cast<char32_t>(c));
    const Utf8Unit unit = decode_utf8(text, 0);
    ASSERT_EQ(unit.code_point, c);
    ASSERT_EQ(static_cast<size_t>(unit.length), text.size());
    ASSERT_EQ(find_invalid_utf8(text), std::string::npos);
  }
}

TEST(Utf8, RefusesOverlongFormsSurrogatesAndTooLargeCodePoints) {
  for (const char* text :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF",
        "\xED\xA0\x80", "\xED\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\x80", "\xBF", "\xFF"}) {
    EXPECT_EQ(find_invalid_utf8(std::string("ok") + text), 2u);
  }
}

struct Sanitized {
  const char *bytes, *expected;  // R stands for U+FFFD
};

// The examples of the Unicode standard, section 3.9 (tables 3-8 to 3-11), and truncations.
TEST(Utf8, OneReplacementPerMaximalSubpart) {
  const Sanitized cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "RRRRRRRRA"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "RRRRRRRRA"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "RRRRRARRB"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "RRRRA"},
      {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64", "aRRRbRcRRd"},
      {"abc\xE4\xBD", "abcR"},
      {"\xF0\x9F\x8D", "R"},
      {"", ""},
  };
  for (const Sanitized& c : cases) {
    std::string expected;
    for (const char* at = c.expected; *at; ++at) expected += *at == 'R' ? kReplacement : std::string(1, *at);
    EXPECT_EQ(sanitize_utf8(c.bytes), expected);
  }
}

TEST(Utf8, SanitizedTextIsValidAndValidTextIsUnchanged) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random() % 12, '\0');
    for (char& byte : bytes)
      byte = static_cast<char>(random() % 2 ? random() : "\xE4\xBD\xA0\xF0\x9F\x8D\xA3\xC3"[random() % 8]);
    const std::string clean = sanitize_utf8(bytes);
    ASSERT_EQ(find_invalid_utf8(clean), std::string::npos);
    ASSERT_EQ(sanitize_utf8(clean), clean);
    if (find_invalid_utf8(bytes) == std::string::npos) {
      ASSERT_EQ(clean, bytes);
    }
  }
}

TEST(Utf8, HoldsBackOnlyWhatMoreBytesCouldComplete) {
  const std::string whole = "\xF0\x9F\x8D\xA3";
  for (size_t n = 1; n < 4; ++n) EXPECT_EQ(incomplete_utf8_tail("x" + whole.substr(0, n)), n);
  EXPECT_EQ(incomplete_utf8_tail(whole), 0u);
  EXPECT_EQ(incomplete_utf8_tail(""), 0u);
  for (const char* hopeless :
       {"\xFF", "\x80", "\xE0\x80", "\xED\xA0", "\xF4\x90", "\xC0", "\xE4\xBD\xA0\x80"}) {
    EXPECT_EQ(incomplete_utf8_tail(hopeless), 0u);
  }
}

}  // namespace
}  // namespace trivium::io
