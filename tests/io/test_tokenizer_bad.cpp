// Damaged and hostile tokenizer files: each is one ModelFormatError that names the file and what is wrong.
#include <cstring>

#include "core/error.h"
#include "tokenizer_support.h"

namespace trivium::io {
namespace {

using testing::kSmallFolder;
using testing::read_file;

std::string error_of(const std::string& bytes, const char* kind) {
  try {
    Tokenizer::from_bytes(bytes, kind, "FILE");
  } catch (const ModelFormatError& error) {
    return error.what();
  }
  return "";
}

struct Edit {
  const char *from, *to, *message;
};

TEST(TokenizerBad, JsonContent) {
  const std::string good = read_file(kSmallFolder + "/tokenizer.json");
  const Edit edits[] = {
      {"\"th\": 256", "\"th\": 255", "given to both"},
      {"\"th\": 256", "\"th\": 256, \"th\": 400", "two ids, 256 and 400"},
      {"\"th\": 256", "\"th\": 2147483648", "id 2147483648, expected 0 to 1048575"},
      {"\"th\": 256", "\"th\": 1048576", "id 1048576, expected"},
      {"\"th\": 256", "\"th\": -1", "id -1, expected"},
      {"\"th\": 256", "\"th\": 18446744073709551615", "not an integer"},
      {"\"th\": 256", "\"th\": 1.5", "not an integer"},
      {"\"th\": 256", "\"th\": [256]", "not an integer"},
      {"\"th\": 256", "\"th\": null", "not an integer"},
      {"\"th\": 256", "\"th\": \"256\"", "not an integer"},
      {"\"th\": 256", "\"t h\": 256", "stands for no byte"},
      {"\"th\": 256", "\"\": 256", "token 256 is empty"},
      {"\"th\": 256", "\"tq\": 256", "merge 0 (\"t\" \"h\") needs a token"},
      {"\"a\": 97", "\"\\u0000\": 97", "stands for no byte"},
      {"\"Z\": 90", "\"zzz\": 90", "no token for the single byte \"Z\""},
      {"\"t\",\n\"h\"", "\"t\",\n\"qz\"", "needs a token that is not in the vocabulary"},
      {"\"t\",\n\"h\"", "\"t\"", "has 1 parts"},
      {"\"t\",\n\"h\"", "\"t\", \"h\", \"e\"", "has 3 parts"},
      {"\"t\",\n\"h\"", "\"t\", 5", "not a pair of strings"},
      {"\"t\",\n\"h\"", "\"t\", [\"h\"]", "not a pair of strings"},
      {"[\n\"t\",\n\"h\"\n]", "\"t  h\"", "not two parts with one space"},
      {"[\n\"t\",\n\"h\"\n]", "\"th\"", "not two parts with one space"},
      {"[\n\"t\",\n\"h\"\n]", "{\"t\": \"h\"}", "merge 0 is not a pair"},
      {"[\n\"t\",\n\"h\"\n]", "[\"t\", \"h\"], [\"t\", \"h\"]", "merge 1 repeats merge 0"},
      {"\"type\": \"BPE\"", "\"type\": \"Unigram\"", "model type \"Unigram\" is not supported"},
      {"\"type\": \"BPE\"", "\"type\": \"BPE\", \"type\": \"BPE\"", "appears twice"},
      {"\"model\":", "\"modell\":", "no \"model\" object"},
      {"\"vocab\":", "\"vocabulary\":", "lacks \"vocab\" or \"merges\""},
      {"\"merges\":", "\"mergers\":", "lacks \"vocab\" or \"merges\""},
      {"\"merges\":", "\"merges\": [], \"merges\":", "appears twice"},
      {"\"byte_fallback\": false", "\"byte_fallback\": true", "\"byte_fallback\" is not supported"},
      {"\"dropout\": null", "\"dropout\": 0.1", "\"dropout\" is not supported"},
      {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"",
       "\"end_of_word_suffix\" is not supported"},
      {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}",
       "normalizer \"NFKC\" is not supported"},
      {"\"normalizer\": null", "\"normalizer\": 3", "normalizer \"(no type)\" is not supported"},
      {"\"type\": \"Sequence\"", "\"type\": \"Metaspace\"", "pre_tokenizer \"Metaspace\" is not supported"},
      {"\"type\": \"Split\"", "\"type\": \"Digits\"", "pre_tokenizer \"Digits\" is not supported"},
      {"\"behavior\": \"Isolated\"", "\"behavior\": \"Removed\"", "\"Isolated\""},
      {"\"invert\": false", "\"invert\": true", "invert false"},
      {"\"Regex\":", "\"String\":", "no Regex pattern"},
      {"\"add_prefix_space\": false", "\"add_prefix_space\": true", "add_prefix_space is not supported"},
      {"\"use_regex\": false", "\"use_regex\": true", "use_regex true after a Split"},
      {"\\\\p{N}{1,3}", "\\\\p{Thai}", "\"\\p{Thai}\""},
      {"\"content\": \"<|end|>\"", "\"content\": \"<|start|>\"", "has two ids"},
      {"\"content\": \"<|end|>\"", "\"content\": \"\"", "is empty"},
      {"\"content\": \"<|end|>\"", "\"content\": \"qqthe\"", ""},
      {"\"content\": \"<|end|>\"", "\"content\": \"the\"",
       "special token \"the\" (id 301) is also ordinary token 257"},
      {"\"content\": \"<|end|>\"", "\"contents\": 1", "lacks its id or content"},
      {"\"id\": 301", "\"id\": 300", "given to both"},
      {"\"id\": 301", "\"id\": 257", "has the id of ordinary token \"the\""},
      {"\"id\": 301", "\"id\": 99999999999", "expected 0 to"},
      {"\"id\": 301", "\"id\": \"301\"", "lacks its id or content"},
      {"\"special\": true", "\"special\": false", ""},
      {"\"added_tokens\": [", "\"added_tokens\": [{\"id\": 257, \"content\": \"zz\"},",
       "added token \"zz\" (id 257) has the id of token \"the\""},
      {"\"post_processor\": {", "\"post_processor\": null, \"x\": {", ""},
      {"\"post_processor\": {", "\"post_processor\": {\"type\": \"BertProcessing\"}, \"x\": {",
       "post_processor \"BertProcessing\" is not supported"},
      {"\"post_processor\": {", "\"post_processor\": 7, \"x\": {",
       "post_processor \"(no type)\" is not supported"},
      {"\"post_processor\": {", "\"post_processor\": {\"type\": \"TemplateProcessing\"}, \"x\": {",
       "has 0 places for a text"},
      {"\"post_processor\": {",
       "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": "
       "[{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}, \"x\": {",
       "has no ids for \"<s>\""},
      {"\"post_processor\": {",
       "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "
       "\"<s>\"}}], "
       "\"special_tokens\": {\"<s>\": {\"ids\": [99999]}}}, \"x\": {",
       "gives \"<s>\" an id that is not in the vocabulary"},
      {"\"lstrip\": false", "\"lstrip\": true", "lstrip"},
      {"{\n", "[1,\n", "expected a JSON object"},
  };
  for (const Edit& edit : edits) {
    std::string json = good;
    ASSERT_NE(json.find(edit.from), std::string::npos) << edit.from;
    json.replace(json.find(edit.from), std::strlen(edit.from), edit.to);
    const std::string message = error_of(json, "json");
    if (*edit.message == '\0') {
      EXPECT_EQ(message, "") << edit.to;
      continue;
    }
    EXPECT_TRUE(message.starts_with("FILE: ")) << edit.to << " -> " << message;
    EXPECT_NE(message.find(edit.message), std::string::npos) << edit.to << " -> " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(TokenizerBad, JsonCutAnywhere) {
  const std::string good = read_file(kSmallFolder + "/tokenizer.json");
  ASSERT_EQ(error_of(good, "json"), "");
  for (size_t n = 0; n + 2 < good.size(); n += 3) EXPECT_NE(error_of(good.substr(0, n), "json"), "") << n;
  for (const char* other :
       {"null", "[]", "3", "{}", "\"x\"", "{\"model\": 3}", "{\"model\": {\"vocab\": [], \"merges\": []}}"}) {
    EXPECT_NE(error_of(other, "json"), "") << other;
  }
}

TEST(TokenizerBad, JsonBombs) {
  EXPECT_NE(error_of(std::string(100000, '['), "json"), "");
  std::string deep = "{\"normalizer\": ";
  for (int i = 0; i < 50; ++i) deep += "{\"a\": [";
  EXPECT_NE(error_of(deep, "json"), "");
  std::string wide = "{\"normalizer\": [0";
  for (int i = 0; i < 20000; ++i) wide += ",0";
  EXPECT_NE(error_of(wide + "]}", "json").find("too large"), std::string::npos);
  std::string settings = "{\"model\": {";
  for (int i = 0; i < 200; ++i) settings += concat("\"k", i, "\": 0, ");
  EXPECT_NE(error_of(settings + "\"z\": 0}}", "json").find("100 settings"), std::string::npos);
  const std::string long_special(600, 'x');
  std::string json = read_file(kSmallFolder + "/tokenizer.json");
  json.replace(json.find("<|call|>"), 8, long_special);
  EXPECT_NE(error_of(json, "json").find("at most 512"), std::string::npos);
}

TEST(TokenizerBad, TiktokenLines) {
  const std::string good = read_file(kSmallFolder + "/small.tiktoken");
  const std::pair<const char*, const char*> lines[] = {
      {"YQ==", "not a base64 token and its rank"},
      {"YQ== ", "not a base64 token and its rank"},
      {"YQ== x", "not a base64 token and its rank"},
      {"YQ== 5x", "not a base64 token and its rank"},
      {"YQ== 99999999999999999999", "not a base64 token and its rank"},
      {"YQ 300", "not a base64 token and its rank"},
      {"Y*== 300", "not a base64 token and its rank"},
      {"==== 300", "not a base64 token and its rank"},
      {" 300", "not a base64 token and its rank"},
      {"enp6 -1", "id -1, expected 0 to"},
      {"enp6 1048576", "expected 0 to"},
      {"enp6 1048575", "no ids are left"},
      {"enp6 3", "given to both"},
      {"YQ== 300", "two ids, 97 and 300"},
      {"PHxlbmR8Pg== 300", "is also ordinary token 300"},  // <|end|>
  };
  for (const auto& [line, expected] : lines) {
    const std::string message = error_of(good + line + "\n", "tiktoken");
    EXPECT_NE(message.find(expected), std::string::npos) << line << " -> " << message;
  }
  EXPECT_EQ(error_of(good + "\r\n\n", "tiktoken"), "");
  EXPECT_NE(error_of("", "tiktoken").find("no token for the single byte"), std::string::npos);
  EXPECT_NE(error_of(good.substr(good.find('\n') + 1), "tiktoken").find("no token for the single byte"),
            std::string::npos);
}

void put(std::string& out, auto value) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); }

std::string record(float score, int32_t length, std::string_view token) {
  std::string out;
  put(out, score);
  put(out, length);
  return out.append(token);
}

TEST(TokenizerBad, BinRecords) {
  const std::string good = read_file(kSmallFolder + "/tokenizer.bin");  // longest token: 15 bytes
  const std::pair<std::string, const char*> tails[] = {
      {record(304, -1, ""), "has length -1, expected 0 to 15"},
      {record(304, 16, "0123456789abcdef"), "has length 16, expected 0 to 15"},
      {record(304, 15, "short"), "the file ends at byte"},
      {record(304, 0, ""), "token 304 is empty"},
      {record(303, 2, "zz"), "has score 303, expected its rank 304"},
      {record(std::numeric_limits<float>::quiet_NaN(), 2, "zz"), "has score nan"},
      {record(304, 3, "the"), "two ids, 257 and 304"},
      {record(304, 6, "<0x00>"), "two ids, 0 and 304"},
      {record(-1e30f, 7, "<|end|>"), "two ids, 301 and 304"},
      {record(-1e30f, 3, "the"), "is also ordinary token 257"},
      {"x", "the file ends at byte"},
  };
  for (const auto& [tail, expected] : tails) {
    const std::string message = error_of(good + tail, "bin");
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
  EXPECT_EQ(error_of(good + record(-1e30f, 0, ""), "bin"), "");  // a hole
  std::string header;
  put(header, int32_t{0});
  EXPECT_NE(error_of(header, "bin").find("longest token has 0 bytes"), std::string::npos);
}

// A cut inside the ordinary tokens leaves a byte without token or a torn record; a cut exactly between the
// specials at the end cannot be told from a shorter vocabulary.
TEST(TokenizerBad, BinCutAnywhere) {
  const std::string good = read_file(kSmallFolder + "/tokenizer.bin");
  size_t accepted = 0;
  for (size_t n = 0; n < good.size(); ++n) accepted += error_of(good.substr(0, n), "bin").empty();
  EXPECT_EQ(accepted, 39u + 9u);  // after each of the tokens that follow the single bytes, but the last
}

TEST(TokenizerBad, KindAndPath) {
  EXPECT_THROW(Tokenizer::from_bytes("", "model", "x"), InvalidArgument);
  EXPECT_THROW(Tokenizer::load(kSmallFolder + "/../make_tokenizer_small.py"), ModelFormatError);
}

TEST(TokenizerBad, RandomDamageNeverCrashes) {
  std::mt19937 random(11);
  for (const char* kind : {"json", "tiktoken", "bin"}) {
    const std::string good = read_file(kSmallFolder + (kind[0] == 'j'   ? "/tokenizer.json"
                                                       : kind[0] == 't' ? "/small.tiktoken"
                                                                        : "/tokenizer.bin"));
    for (int i = 0; i < 300; ++i) {
      std::string bytes = good;
      for (size_t n = random() % 4 + 1; n > 0; --n)
        bytes[random() % bytes.size()] = static_cast<char>(random());
      try {
        const auto t = Tokenizer::from_bytes(bytes, kind, "FILE");
        EXPECT_EQ(t->decode(t->encode("the world 你🍣 123")), "the world 你🍣 123");
      } catch (const ModelFormatError&) {
      }
    }
  }
}

}  // namespace
}  // namespace trivium::io
