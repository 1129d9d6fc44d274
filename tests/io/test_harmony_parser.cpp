// Harmony parser: well-formed output, what models get wrong, streams cut at every token, random tokens.
#include "io/harmony.h"
#include "tokenizer_support.h"

namespace trivium::io {
namespace {

using testing::small_tokenizer;

struct Parsed {
  std::vector<HarmonyMessage> messages;
  std::vector<HarmonyDelta> deltas;  // those with text
};

Parsed parse_ids(const std::vector<int32_t>& ids) {
  HarmonyParser parser(small_tokenizer());
  Parsed parsed;
  const auto keep = [&](const HarmonyDelta& delta) {
    EXPECT_EQ(sanitize_utf8(delta.text), delta.text);
    if (!delta.text.empty()) parsed.deltas.push_back(delta);
  };
  for (const int32_t id : ids) keep(parser.push(id));
  keep(parser.finish());
  parsed.messages = parser.messages();
  return parsed;
}

std::vector<int32_t> ids_of(const std::string& text) {
  return small_tokenizer().encode(text, {.parse_special = true});
}
std::vector<HarmonyMessage> parse(const std::string& text) { return parse_ids(ids_of(text)).messages; }

// role/channel/recipient/type:content, "!" in front when incomplete.
std::string brief(const std::vector<HarmonyMessage>& messages) {
  std::string out;
  for (const HarmonyMessage& m : messages) {
    if (!out.empty()) out += " | ";
    out += (m.incomplete ? "!" : "") + m.role + "/" + m.channel + "/" + m.recipient + "/" + m.content_type +
           ":" + m.content;
  }
  return out;
}

const std::string kTurn =
    "<|channel|>analysis<|message|>Think.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>"
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>2<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 2 🍣.<|return|>";

TEST(HarmonyParser, AWholeTurn) {
  EXPECT_EQ(brief(parse(kTurn)),
            "assistant/analysis//:Think. | assistant/commentary/functions.f/json:{\"a\": 1} | "
            "functions.f/commentary/assistant/:2 | assistant/final//:It is 2 🍣.");
}

TEST(HarmonyParser, HeaderForms) {
  const std::pair<const char*, const char*> cases[] = {
      {" to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
       "assistant/commentary/functions.f/json:{}"},
      {"<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
       "assistant/commentary/functions.f/json:{}"},
      {"<|channel|>commentary to=functions.f code<|message|>x<|call|>",
       "assistant/commentary/functions.f/code:x"},
      {"<|channel|>analysis <|constrain|>json to=f<|message|>x<|call|>", "assistant/analysis/f/json:x"},
      {"assistant<|channel|>final<|message|>x<|end|>", "assistant/final//:x"},
      {"<|message|>x<|return|>", "assistant/final//:x"},
      {"<|channel|>thoughts<|message|>x<|end|>", "assistant/thoughts//:x"},
      {"<|channel|><|message|>x<|end|>", "assistant/final//:x"},
      {"<|channel|>final<|message|><|return|>", "assistant/final//:"},
      {"<|start|>user<|message|>x<|end|>", "user/final//:x"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(brief(parse(text)), expected) << text;
}

TEST(HarmonyParser, RecoversFromWhatModelsGetWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},
      {" \n", ""},
      {"<|end|>", ""},
      {"<|return|><|call|><|end|>", ""},
      {"<|constrain|><|constrain|>", ""},
      {"Hello you<|return|>", "!assistant/final//:Hello you"},  // no header at all
      {"Hello", "!assistant/final//:Hello"},
      {"<|channel|>final<|message|>x", "!assistant/final//:x"},  // never ended
      {"<|channel|>fin", "!assistant/fin//:"},
      {"<|channel|>final<|end|>", "!assistant/final//:"},
      {"<|channel|>analysis<|message|>x<|channel|>final<|message|>y<|end|>",
       "!assistant/analysis//:x | assistant/final//:y"},
      {"<|channel|>analysis<|message|>x<|start|>assistant<|channel|>final<|message|>y<|end|>",
       "!assistant/analysis//:x | assistant/final//:y"},
      {"<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>y<|end|>",
       "assistant/analysis//:x | assistant/final//:y"},
      {"<|channel|>analysis<|message|>x<|end|><|message|>y<|end|>",
       "assistant/analysis//:x | assistant/final//:y"},
      {"<|channel|>final<|message|>x<|end|> and more<|start|>user<|message|>y<|end|>",
       "assistant/final//:x and more | user/final//:y"},
      {"<|channel|>final<|message|>x<|end|>\xF0\x9F", "assistant/final//:x\uFFFD"},
      {"<|channel|>analysis<|channel|>final<|message|>x<|end|>", "!assistant/final//:x"},
      {"<|channel|>final<|message|>x<|message|>y<|constrain|>z<|startoftext|><|end|>",
       "assistant/final//:xyz"},
      {"<|channel|>final json extra<|message|>x<|end|>", "!assistant/final//extra:x"},
      {"<|start|>assistant analysis what<|channel|>final<|message|>x<|end|>", "!assistant/final//:x"},
      {"<|start|><|start|>assistant<|message|>x<|end|>", "assistant/final//:x"},
      {"<|channel|>final<|message|>x<|end|><|end|><|end|>", "assistant/final//:x"},
      {"<|end|>lost text<|end|>", "!assistant/final//:lost text"},
      {"<|channel|>\xFF\xF0<|message|>x<|end|>", "assistant/\uFFFD\uFFFD//:x"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(brief(parse(text)), expected) << text;
}

TEST(HarmonyParser, DeltasOfAMessageJoinToItsContent) {
  const Parsed parsed = parse_ids(ids_of(kTurn));
  std::string analysis, final;
  for (const HarmonyDelta& delta : parsed.deltas) {
    if (delta.channel == "analysis") analysis += delta.text;
    if (delta.channel == "final") final += delta.text;
  }
  EXPECT_EQ(analysis, "Think.");
  EXPECT_EQ(final, "It is 2 🍣.");
}

TEST(HarmonyParser, CutAtEveryTokenKeepsWhatCameBefore) {
  const std::vector<int32_t> ids = ids_of(kTurn);
  const std::vector<HarmonyMessage> whole = parse_ids(ids).messages;
  for (size_t n = 0; n < ids.size(); ++n) {
    const std::vector<int32_t> cut(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
    const std::vector<HarmonyMessage> messages = parse_ids(cut).messages;
    ASSERT_LE(messages.size(), whole.size());
    for (size_t i = 0; i + 1 < messages.size(); ++i) {
      EXPECT_EQ(messages[i].content, whole[i].content);
      EXPECT_FALSE(messages[i].incomplete);
    }
    if (messages.empty()) continue;
    const HarmonyMessage& last = messages.back();
    const HarmonyMessage& full = whole[messages.size() - 1];
    std::string kept = last.content;
    while (kept.ends_with("\uFFFD")) kept.resize(kept.size() - 3);  // a character cut in two
    EXPECT_TRUE(full.content.starts_with(kept)) << n;
    EXPECT_TRUE(last.incomplete || last.content == full.content) << n;
  }
}

TEST(HarmonyParser, RandomTokensNeverThrowAndLoseNoContent) {
  const Tokenizer& t = small_tokenizer();
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::vector<int32_t> ids(random() % 40);
    for (int32_t& id : ids) {
      id = random() % 3 == 0 ? static_cast<int32_t>(295 + random() % 9)
                             : static_cast<int32_t>(random() % 320) - 8;
    }
    const Parsed parsed = parse_ids(ids);
    std::string streamed, content;
    for (const HarmonyDelta& delta : parsed.deltas) streamed += delta.text;
    for (const HarmonyMessage& m : parsed.messages) content += m.content;
    ASSERT_EQ(streamed, content);
    ASSERT_LE(content.size(), 3 * t.decode(ids).size());
  }
}

TEST(HarmonyParser, RenderedConversationsParseBack) {
  std::mt19937 random(4);
  HarmonyOptions options;
  options.current_date = "2025-06-28";
  options.add_generation_prompt = false;
  for (int i = 0; i < 500; ++i) {
    const auto make = [&](const char* role, const char* channel, const char* recipient, const char* type) {
      return HarmonyMessage{.role = role,
                            .content = sanitize_utf8(testing::random_bytes(random, 10)),
                            .channel = channel,
                            .recipient = recipient,
                            .content_type = type};
    };
    const HarmonyMessage user = make("user", "", "", "");
    const HarmonyMessage call = make("assistant", "commentary", "functions.f", "json");
    const HarmonyMessage answer = make("assistant", "final", "", "");
    std::vector<HarmonyMessage> parsed =
        parse_ids(render_harmony(small_tokenizer(), {user, call, answer}, options)).messages;
    ASSERT_EQ(parsed.size(), 4u);
    parsed.erase(parsed.begin());  // the system message
    EXPECT_EQ(brief(parsed), "user/final//:" + user.content + " | assistant/commentary/functions.f/json:" +
                                 call.content + " | assistant/final//:" + answer.content);
  }
}

}  // namespace
}  // namespace trivium::io
