// Tokenizers: the three file formats of the small vocabulary, round trips, special tokens, streaming.
#include <filesystem>
#include <map>

#include "core/error.h"
#include "io/json.h"
#include "tokenizer_support.h"

namespace trivium::io {
namespace {

using testing::kSmallFiles;
using testing::kSmallFolder;
using testing::random_bytes;
using testing::read_file;
using testing::small_tokenizer;

class SmallVocabulary : public ::testing::TestWithParam<const char*> {
 protected:
  const std::shared_ptr<const Tokenizer> tokenizer_ = Tokenizer::load(kSmallFolder + "/" + GetParam());
};

// expected.json was written by the `tokenizers` package and agrees with tiktoken.
TEST_P(SmallVocabulary, GivesTheReferenceIds) {
  const JsonValue cases = parse_json_document(read_file(kSmallFolder + "/expected.json"), "expected.json");
  ASSERT_GT(cases.array()->size(), 100u);
  for (const JsonValue& c : *cases.array()) {
    const std::string& text = *c.find("text")->string();
    std::vector<int32_t> expected;
    for (const JsonValue& id : *c.find("ids")->array())
      expected.push_back(static_cast<int32_t>(id.integer()));
    EXPECT_EQ(tokenizer_->encode(text), expected) << text;
    EXPECT_EQ(tokenizer_->decode(expected), text);
  }
}

TEST_P(SmallVocabulary, HasTheSameTokens) {
  ASSERT_EQ(tokenizer_->vocab_size(), small_tokenizer().vocab_size());
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    EXPECT_EQ(tokenizer_->token_bytes(id), small_tokenizer().token_bytes(id)) << id;
    EXPECT_EQ(tokenizer_->is_special(id), small_tokenizer().is_special(id)) << id;
  }
  EXPECT_EQ(tokenizer_->vocab_size(), 304);
  EXPECT_EQ(tokenizer_->token_bytes(0), std::string_view("\0", 1));
  EXPECT_EQ(tokenizer_->special_id("<|startoftext|>"), 295);
  EXPECT_EQ(tokenizer_->special_id("<|call|>"), 303);
  EXPECT_EQ(tokenizer_->special_id("the"), std::nullopt);
  EXPECT_EQ(tokenizer_->special_id(""), std::nullopt);
}

TEST_P(SmallVocabulary, EveryByteSequenceRoundTrips) {
  std::mt19937 random(7);
  for (int b = 0; b < 256 * 256; ++b) {
    const std::string two = {static_cast<char>(b >> 8), static_cast<char>(b)};
    ASSERT_EQ(tokenizer_->decode(tokenizer_->encode(two)), two);
  }
  for (int i = 0; i < 20000; ++i) {
    const std::string text = random_bytes(random, 30);
    ASSERT_EQ(tokenizer_->decode(tokenizer_->encode(text)), text);
  }
}

TEST_P(SmallVocabulary, UserTextNeverBecomesASpecialToken) {
  std::mt19937 random(8);
  for (int i = 0; i < 5000; ++i) {
    for (const int32_t id : tokenizer_->encode(random_bytes(random, 20)))
      ASSERT_FALSE(tokenizer_->is_special(id));
  }
  for (int32_t id = 295; id < 304; ++id) {
    const std::string text(tokenizer_->token_bytes(id));
    EXPECT_GT(tokenizer_->encode(text).size(), 1u) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, SmallVocabulary, ::testing::ValuesIn(kSmallFiles), [](const auto& format) {
  const std::string name = format.param;
  return name.substr(name.find('.') + 1);
});

TEST(Tokenizer, SpecialTextIsRecognisedOnlyWhenAsked) {
  const Tokenizer& t = small_tokenizer();
  const int32_t start = *t.special_id("<|start|>"), end = *t.special_id("<|end|>");
  EXPECT_EQ(t.encode("<|start|>the<|end|><|end|>", {.parse_special = true}),
            (std::vector<int32_t>{start, 257, end, end}));
  EXPECT_EQ(t.encode("<|start|", {.parse_special = true}), t.encode("<|start|"));
  EXPECT_EQ(t.encode("", {.parse_special = true}), std::vector<int32_t>{});
  EXPECT_EQ(t.decode(std::vector<int32_t>{start, 257, end}), "the");
  EXPECT_EQ(t.decode(std::vector<int32_t>{start, 257, end}, true), "<|start|>the<|end|>");
}

TEST(Tokenizer, TheLongestSpecialTokenWins) {
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  json.replace(json.find("<|startoftext|>"), 15, "<|end|>>");
  const auto t = Tokenizer::from_bytes(json, "json", "tokenizer.json");
  EXPECT_EQ(t->encode("<|end|>>", {.parse_special = true}), std::vector<int32_t>{295});
  EXPECT_EQ(t->encode("<|end|>", {.parse_special = true}), std::vector<int32_t>{*t->special_id("<|end|>")});
}

TEST(Tokenizer, StrictModeNamesTheOffsetOfInvalidUtf8) {
  const Tokenizer& t = small_tokenizer();
  EXPECT_NO_THROW(t.encode("héllo 🍣", {.strict_utf8 = true}));
  try {
    t.encode("the\xE4\xBD", {.strict_utf8 = true});
    ADD_FAILURE() << "accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "encode: invalid UTF-8 at byte 3");
  }
}

TEST(Tokenizer, IdsWithoutATokenHaveNoBytes) {
  const Tokenizer& t = small_tokenizer();
  for (const int32_t id : {-1, 304, 1 << 20, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(t.token_bytes(id), "");
    EXPECT_FALSE(t.is_special(id));
    EXPECT_EQ(t.decode(std::vector<int32_t>{id, 257}, true), "the");
  }
}

TEST(Tokenizer, StreamedTextEqualsTheTextDecodedAtOnce) {
  const Tokenizer& t = small_tokenizer();
  std::mt19937 random(9);
  for (int i = 0; i < 20000; ++i) {
    std::vector<int32_t> ids(random() % 12);
    for (int32_t& id : ids) {
      id = random() % 2 ? static_cast<int32_t>(random() % 304)
                        : static_cast<int32_t>("\xF0\x9F\x8D\xA3\xE4\xBD\xA0\xFF"[random() % 8] & 0xFF);
    }
    const bool with_specials = random() % 2;
    StreamDecoder stream(t, with_specials);
    std::string joined;
    for (const int32_t id : ids) {
      const std::string piece = stream.push(id);
      ASSERT_EQ(sanitize_utf8(piece), piece);
      joined += piece;
    }
    joined += stream.finish();
    ASSERT_EQ(joined, sanitize_utf8(t.decode(ids, with_specials)));
    ASSERT_EQ(stream.finish(), "");
  }
}

TEST(Tokenizer, StreamingHoldsBackASplitCharacter) {
  const Tokenizer& t = small_tokenizer();
  StreamDecoder stream(t);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(*t.special_id("<|end|>")), "");
  EXPECT_EQ(stream.push(0x8D), "");
  EXPECT_EQ(stream.push(0xA3), "🍣");
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push('a'),
            "\uFFFD"
            "a");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(Tokenizer, FoldersPreferJsonThenRanksThenBin) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "trivium_tokenizer_order";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_FALSE(Tokenizer::present(folder.string()));
  EXPECT_THROW(Tokenizer::load(folder.string()), ModelFormatError);
  EXPECT_FALSE(Tokenizer::present((folder / "nowhere").string()));
  EXPECT_THROW(Tokenizer::load((folder / "nowhere").string()), ModelFormatError);
  const auto add = [&](const char* from, const char* to) {
    std::filesystem::copy_file(kSmallFolder + "/" + from, folder / to);
  };
  add("tokenizer.bin", "tokenizer.bin");
  EXPECT_TRUE(Tokenizer::present(folder.string()));
  EXPECT_EQ(Tokenizer::load(folder.string())->vocab_size(), 304);
  std::ofstream(folder / "b.tiktoken") << "not ranks\n";
  EXPECT_THROW(Tokenizer::load(folder.string()), ModelFormatError);
  add("small.tiktoken", "a.tiktoken");  // first by name
  EXPECT_EQ(Tokenizer::load(folder.string())->vocab_size(), 304);
  std::ofstream(folder / "tokenizer.json") << "{}";
  EXPECT_THROW(Tokenizer::load(folder.string()), ModelFormatError);
  std::filesystem::remove_all(folder);
}

// Merges of a JSON file go by their order, not by the ids of what they make.
TEST(Tokenizer, ExplicitMergeOrderDecides) {
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  EXPECT_EQ(small_tokenizer().encode("xthex"), (std::vector<int32_t>{'x', 257, 'x'}));
  const std::string before = "[\n\"t\",\n\"h\"\n]", after = "[\n\"h\",\n\"e\"\n]";
  ASSERT_NE(json.find(before), std::string::npos);
  // "h" "e" -> "he" (a new token 304) goes first now, so "th" never forms before "e".
  json.replace(json.find(before), before.size(), after + ",\n" + before);
  json.replace(json.find("\"vocab\": {"), 10, "\"vocab\": {\"he\": 304,");
  const auto t = Tokenizer::from_bytes(json, "json", "tokenizer.json");
  EXPECT_EQ(t->encode("xthex"), (std::vector<int32_t>{'x', 't', 304, 'x'}));
  EXPECT_EQ(t->encode("the"), std::vector<int32_t>{257});  // ignore_merges: a whole piece is taken as it is
  json.replace(json.find("\"ignore_merges\": true"), 21, "\"ignore_merges\": false");
  EXPECT_EQ(Tokenizer::from_bytes(json, "json", "x")->encode("the"), (std::vector<int32_t>{'t', 304}));
}

TEST(Tokenizer, Gpt2SplitOfByteLevel) {
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  const size_t begin = json.find("\"pre_tokenizer\""), end = json.find("\"post_processor\"");
  json.replace(begin, end - begin,
               R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},)");
  const auto t = Tokenizer::from_bytes(json, "json", "tokenizer.json");
  EXPECT_EQ(t->encode("1234"), (std::vector<int32_t>{t->encode("123")[0], '4'}));
  EXPECT_EQ(t->decode(t->encode("the world's é🍣\n\n ")), "the world's é🍣\n\n ");
}

TEST(Tokenizer, VocabulariesMayHaveHoles) {
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  json.replace(json.find("\"vocab\": {"), 10, "\"vocab\": {\"zq\": 1000,");
  const auto t = Tokenizer::from_bytes(json, "json", "tokenizer.json");
  EXPECT_EQ(t->vocab_size(), 1001);
  EXPECT_EQ(t->token_bytes(999), "");
  EXPECT_EQ(t->encode("zq"), std::vector<int32_t>{1000});
  EXPECT_EQ(t->decode(std::vector<int32_t>{999, 1000}), "zq");
}

// GPT-2 lists <|endoftext|> among the ordinary tokens as well, with the same id: it is special only.
TEST(Tokenizer, ASpecialTokenMayRepeatAVocabularyEntryOfTheSameId) {
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  json.replace(json.find("\"vocab\": {"), 10, "\"vocab\": {\"<|end|>\": 301,");
  const auto t = Tokenizer::from_bytes(json, "json", "tokenizer.json");
  ASSERT_EQ(t->special_id("<|end|>"), 301);
  for (const int32_t id : t->encode("<|end|>")) EXPECT_FALSE(t->is_special(id));
}

}  // namespace
}  // namespace trivium::io
