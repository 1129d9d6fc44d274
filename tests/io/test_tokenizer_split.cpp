// Pre-tokenization: the pieces of the published patterns, the pinned Unicode version, what patterns are
// refused.
#include <gtest/gtest.h>

#include <ctime>

#include "core/error.h"
#include "io/tokenizer_pattern.h"
#include "io/tokenizer_split.h"
#include "io/unicode.h"

namespace trivium::io {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(const Splitter& splitter, const std::string& text) {
  Pieces pieces;
  size_t begin = 0;
  for (const uint32_t end : splitter.piece_ends(text)) {
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return pieces;
}

const Splitter& o200k() {
  static const Splitter splitter(kO200kPattern, "test");
  return splitter;
}

struct Case {
  const char* text;
  Pieces pieces;
};

// The table of the specification, computed with the published pattern.
TEST(TokenizerSplit, O200kTable) {
  const Case cases[] = {
      {"HTTPServer IsOk", {"HTTPServer", " Is", "Ok"}},
      {"don't DON'T we'LL", {"don't", " DON'T", " we'LL"}},
      {"1234567", {"123", "456", "7"}},
      {"  a   b  ", {" ", " a", "  ", " b", "  "}},
      {"x\n\n  y\r\n", {"x", "\n\n", " ", " y", "\r\n"}},
      {"path//to/\nfile", {"path", "//", "to", "/\n", "file"}},
      {"你好，世界", {"你好", "，世界"}},
      {"\t\tif (x) {\n", {"\t", "\tif", " (", "x", ")", " {\n"}},
      {"price: $1,234.50!", {"price", ":", " $", "1", ",", "234", ".", "50", "!"}},
      {"Ünïcode_ǅ word", {"Ünïcode", "_ǅ", " word"}},
      {"a\u00A0b", {"a", "\u00A0b"}},
  };
  for (const Case& c : cases) EXPECT_EQ(split(o200k(), c.text), c.pieces) << c.text;
}

// tiktoken (Unicode 16.0) gives these pieces; PCRE2 10.42 by itself does not.
TEST(TokenizerSplit, ClassesFollowThePinnedUnicodeVersion) {
  ASSERT_STREQ(kUnicodeVersion, "16.0.0");
  const Case cases[] = {
      {"x\u0CF3'S", {"x\u0CF3'S"}},    // a mark since Unicode 15
      {"a\u180Eb", {"a", "\u180Eb"}},  // a format character, not a space
      {"a \u180E\u180E", {"a", " \u180E\u180E"}},
      {"a\U00011F04b", {"a\U00011F04b"}},  // letter, Unicode 15
      {"\u1C89x", {"\u1C89x"}},            // upper-case letter, Unicode 16
      {"a\u1C89", {"a", "\u1C89"}},
      {"1\u0663\u00BD4", {"1\u0663\u00BD", "4"}},      // Nd and No count, three at a time
      {"x\u0085\u2028y", {"x", "\u0085", "\u2028y"}},  // white space that is neither \r nor \n
  };
  for (const Case& c : cases) EXPECT_EQ(split(o200k(), c.text), c.pieces) << c.text;
}

TEST(TokenizerSplit, CaseFoldingOfContractionsIsUnicodeSimpleFolding) {
  EXPECT_EQ(split(o200k(), "it'\u017F ok"), (Pieces{"it'\u017F", " ok"}));  // long s folds to s
  EXPECT_EQ(split(o200k(), "IT'S we'Re"), (Pieces{"IT'S", " we'Re"}));
  EXPECT_EQ(split(o200k(), "it'x"), (Pieces{"it", "'x"}));
}

TEST(TokenizerSplit, IllFormedBytesAreSymbolsOneByOne) {
  EXPECT_EQ(split(o200k(), "a\xFF\xFE c"), (Pieces{"a", "\xFF\xFE", " c"}));
  EXPECT_EQ(split(o200k(), "a \xFFx"), (Pieces{"a", " \xFF", "x"}));
  EXPECT_EQ(split(o200k(), " \xE4\xBD!\n"), (Pieces{" \xE4\xBD!\n"}));
  EXPECT_EQ(split(o200k(), "\xE4\xBD\xA0\xE4\xBD"), (Pieces{"\xE4\xBD\xA0", "\xE4\xBD"}));
  EXPECT_EQ(split(o200k(), std::string("a\0b", 3)), (Pieces{"a", std::string("\0b", 2)}));
}

TEST(TokenizerSplit, TextBetweenMatchesIsAPieceToo) {
  const Splitter digits("[0-9]+", "test");
  EXPECT_EQ(split(digits, "ab12cd3"), (Pieces{"ab", "12", "cd", "3"}));
  EXPECT_EQ(split(digits, "abc"), (Pieces{"abc"}));
  EXPECT_EQ(split(digits, ""), Pieces{});
  const Splitter empty_matches("x*", "test");
  EXPECT_EQ(split(empty_matches, "axxb"), (Pieces{"a", "xx", "b"}));
}

TEST(TokenizerSplit, Gpt2Pattern) {
  const Splitter gpt2(kGpt2Pattern, "test");
  EXPECT_EQ(split(gpt2, "Hello  world's 123!!\n x"),
            (Pieces{"Hello", " ", " world", "'s", " 123", "!!", "\n", " x"}));
}

TEST(TokenizerSplit, OtherPublishedConstructs) {
  const Splitter possessive(
      R"((?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\P{^N}{1,2}?|\x{17F}|\u0041|[\-\]a-c])", "test");
  EXPECT_EQ(split(possessive, "12"), (Pieces{"1", "2"}));
  const Splitter lookbehind(R"((?<=a)b|(?<!a)c|(?>d+)|e(?=f)|\d\D)", "test");
  EXPECT_EQ(split(lookbehind, "abxcddef1z"), (Pieces{"a", "b", "x", "c", "dd", "e", "f", "1z"}));
}

TEST(TokenizerSplit, PatternsOutsideTheSubsetAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"\\w+", "\\w"},
      {"a^b", "^"},
      {"a$", "$"},
      {"(a)\\1", "\\1"},
      {"[[:alpha:]]", "[:"},
      {"[a&&b]", "&&"},
      {"é", "\\xc3\\xa9"},
      {"\\p{Greek}", "Greek"},
      {"(?i)a", "(?i"},
      {"(?<n>a)", "(?<"},
      {"(a", "unclosed"},
      {"a)", "without"},
      {"[a", "unclosed"},
      {"\\", "lone"},
      {"*a", "*"},
      {"a{,3}", "{,"},
      {"a{9999}", "{9999"},
      {"(*UTF)a", "(*"},
      {"(?i:\\p{L})", "case-insensitive"},
      {"[z-a]", "z-a"},
      {"[]", "]"},
      {"\\p{", "unclosed"},
      {"[\\s-x]", "-x"},
      {"\\x{110000}", "110000"},
      {"a{2", "{2"},
      {"\\x4", "\\x4"},
      {"\\pQ", "\\pQ"},
      {"", "0 bytes"},
  };
  for (const auto& [pattern, named] : cases) {
    try {
      Splitter(pattern, "tokenizer.json");
      ADD_FAILURE() << "accepted: " << pattern;
    } catch (const ModelFormatError& error) {
      EXPECT_TRUE(std::string_view(error.what()).starts_with("tokenizer.json: ")) << error.what();
      EXPECT_NE(std::string_view(error.what()).find(named), std::string_view::npos)
          << pattern << ": " << error.what();
    }
  }
  EXPECT_THROW(Splitter(std::string(60, '(') + std::string(60, ')'), "x"), ModelFormatError);
  EXPECT_THROW(Splitter(std::string(70000, 'a'), "x"), ModelFormatError);
}

TEST(TokenizerSplit, ExponentialBacktrackingIsAnErrorNotAHang) {
  const Splitter hostile("(?:a|aa|aaa)*(?:b|c)", "tokenizer.json");
  EXPECT_THROW(hostile.piece_ends(std::string(200, 'a')), InvalidArgument);
}

TEST(TokenizerSplit, LongRunsOfOneCharacterTakeLinearTime) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const double limit_s = 20;
#else
  const double limit_s = 1;
#endif
  for (const char* unit : {"a", "A", " ", "\n", "\r", "1", "'", "\u00B4", "\u0301", "你", "🍣", "\xFF", " \n",
                           "aA", "'s", "/", "\u00A0"}) {
    std::string text;
    for (int i = 0; i < 1'000'000; ++i) text += unit;
    const std::clock_t begin = std::clock();
    const auto ends = o200k().piece_ends(text);
    EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, limit_s) << unit;
    ASSERT_FALSE(ends.empty());
    EXPECT_EQ(ends.back(), text.size());
  }
}

}  // namespace
}  // namespace trivium::io
