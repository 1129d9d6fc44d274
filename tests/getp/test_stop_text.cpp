#include <gtest/gtest.h>

#include <random>

#include "getp/fake_model.h"
#include "getp/stop_text.h"

namespace trivium::getp {
namespace {

struct Outcome {
  std::string text;
  bool stopped;
};

Outcome feed(const std::string& bytes, const std::vector<std::string>& stops) {
  const auto tokenizer = testing::byte_tokenizer();
  StopText text(*tokenizer, stops);
  Outcome out{"", false};
  for (const char c : bytes) {
    out.text += text.push(3 + static_cast<unsigned char>(c));
    if (text.stopped()) return {out.text, true};
  }
  out.text += text.finish();
  return {out.text, text.stopped()};
}

TEST(StopText, CutsBeforeTheFirstMatch) {
  EXPECT_EQ(feed("hello world", {"lo w"}).text, "hel");
  EXPECT_TRUE(feed("hello world", {"lo w"}).stopped);
  EXPECT_EQ(feed("abcabd", {"abd"}).text, "abc");
  EXPECT_EQ(feed("aaab", {"aab"}).text, "a");
  EXPECT_EQ(feed("one two three", {"three", "two"}).text, "one ");
}

TEST(StopText, ReleasesWhatOnlyLookedLikeAStop) {
  EXPECT_EQ(feed("hello wor", {"world"}).text, "hello wor");
  EXPECT_FALSE(feed("hello wor", {"world"}).stopped);
}

TEST(StopText, FindsStopsOfSeveralByteCharacters) {
  EXPECT_EQ(feed("caf\xc3\xa9 \xe2\x82\xac 5", {"\xe2\x82\xac"}).text, "caf\xc3\xa9 ");
  EXPECT_EQ(feed("\xe2\x82", {"x"}).text, "\xef\xbf\xbd");
}

TEST(StopText, RandomTextEqualsASearchInTheWhole) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (size_t n = random() % 30; n-- > 0;) bytes += static_cast<char>('a' + random() % 3);
    std::vector<std::string> stops;
    for (size_t n = random() % 3; n-- > 0;) {
      std::string stop;
      for (size_t k = 1 + random() % 4; k-- > 0;) stop += static_cast<char>('a' + random() % 3);
      stops.push_back(stop);
    }
    // The earliest end decides, as it would in a stream; among stops that end together the longest.
    size_t cut = std::string::npos;
    for (size_t end = 1; end <= bytes.size() && cut == std::string::npos; ++end)
      for (const std::string& stop : stops)
        if (end >= stop.size() && bytes.compare(end - stop.size(), stop.size(), stop) == 0)
          cut = std::min(cut, end - stop.size());
    const Outcome got = feed(bytes, stops);
    EXPECT_EQ(got.stopped, cut != std::string::npos);
    EXPECT_EQ(got.text, bytes.substr(0, cut));
  }
}

}  // namespace
}  // namespace trivium::getp
