// The real o200k_harmony vocabulary: golden ids and speed. Needs o200k_base.tiktoken, in the folder that
// TRIVIUM_TEST_O200K names or in ../shared/data; skipped without it.
#include <cstdlib>
#include <filesystem>

#include "support/timing.h"
#include "tokenizer_support.h"

namespace trivium::io {
namespace {

using trivium::testing::cpu_seconds_of;
using trivium::testing::kSlower;

std::string rank_file() {
  const char* given = std::getenv("TRIVIUM_TEST_O200K");
  for (const std::filesystem::path folder :
       {std::string(given ? given : ""), std::string(TRIVIUM_TEST_SHARED)}) {
    if (folder.extension() == ".tiktoken" && std::filesystem::exists(folder)) return folder.string();
    if (std::filesystem::exists(folder / "o200k_base.tiktoken"))
      return (folder / "o200k_base.tiktoken").string();
  }
  return "";
}

class O200k : public ::testing::Test {
 protected:
  void SetUp() override {
    if (rank_file().empty())
      GTEST_SKIP() << "o200k_base.tiktoken is neither in $TRIVIUM_TEST_O200K nor in ../shared/data";
    static const std::shared_ptr<const Tokenizer> loaded = Tokenizer::load(rank_file());
    tokenizer_ = loaded.get();
  }

  // Of this process's CPU time: the machine may be busy with other tests.
  double seconds_to_encode(const std::string& text) const {
    std::vector<int32_t> ids;
    const double seconds = cpu_seconds_of([&] { ids = tokenizer_->encode(text); });
    EXPECT_EQ(tokenizer_->decode(ids), text);
    return seconds;
  }

  const Tokenizer* tokenizer_ = nullptr;
};

TEST_F(O200k, GoldenIds) {
  const std::pair<const char*, std::vector<int32_t>> cases[] = {
      {"Hello world", {13225, 2375}},
      {"ฉันรักทะเล", {97797, 6560, 151737, 37899, 17758}},
      {"naïve façade — déjà vu", {1503, 9954, 737, 114665, 2733, 21229, 12005}},
      {"🍣 sushi and 🍜 ramen", {102415, 96, 85535, 326, 197348, 250, 90938}},
      {"email: test@example.com", {4261, 25, 1746, 81309, 1136}},
      {"newlines:", {1389, 10105, 25}},
  };
  for (const auto& [text, ids] : cases) {
    EXPECT_EQ(tokenizer_->encode(text), ids) << text;
    EXPECT_EQ(tokenizer_->decode(ids), text);
  }
}

TEST_F(O200k, GoldenIdsWithSpecialTokens) {
  const std::string text =
      "<|channel|>analysis<|message|>User asks: \"What is 2 + 2?\" Simple arithmetic. Provide "
      "answer.<|end|><|start|>assistant"
      "<|channel|>final<|message|>2 + 2 = 4.<|return|>";
  const std::vector<int32_t> ids = {200005, 35644, 200008, 1844,   31064,  25,     392,    4827,  382,
                                    220,    17,    659,    220,    17,     16842,  12295,  81645, 13,
                                    51441,  6052,  13,     200007, 200006, 173781, 200005, 17196, 200008,
                                    17,     659,   220,    17,     314,    220,    19,     13,    200002};
  EXPECT_EQ(tokenizer_->encode(text, {.parse_special = true}), ids);
  EXPECT_EQ(tokenizer_->decode(ids, true), text);
}

TEST_F(O200k, SpecialIds) {
  EXPECT_EQ(tokenizer_->vocab_size(), 201088);
  const std::pair<const char*, int32_t> named[] = {
      {"startoftext", 199998}, {"endoftext", 199999},      {"return", 200002},
      {"constrain", 200003},   {"channel", 200005},        {"start", 200006},
      {"end", 200007},         {"message", 200008},        {"call", 200012},
      {"endofprompt", 200018}, {"reserved_201087", 201087}};
  for (const auto& [name, id] : named) EXPECT_EQ(tokenizer_->special_id("<|" + std::string(name) + "|>"), id);
  for (int32_t id = 0; id < 201088; ++id) ASSERT_FALSE(tokenizer_->token_bytes(id).empty()) << id;
}

TEST_F(O200k, AMillionEqualCharactersTakeLessThanASecond) {
  for (const char* unit : {"a", "A", " ", "\n", "1", "\u00B4", "'", "你", "🍣", "\xFF"}) {
    std::string text;
    for (int i = 0; i < 1'000'000; ++i) text += unit;
    EXPECT_LT(seconds_to_encode(text), 1.0 * kSlower) << unit;
  }
}

}  // namespace
}  // namespace trivium::io
