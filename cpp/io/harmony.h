// The harmony chat format: rendering of conversations to token ids and a parser that recovers from
// anything a model may write. Special tokens are looked up by name in the tokenizer and inserted as ids,
// never through text, so user content cannot open a message.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace trivium::io {

enum class ReasoningEffort { low, medium, high };

struct HarmonyMessage {
  std::string role;  // system, developer, user, assistant, or a tool's name such as functions.get_weather
  std::string content;
  std::string channel;  // assistant: analysis, commentary, final; empty = final
  std::string
      recipient;  // of a tool call ("functions.get_weather") or tool result ("assistant"); empty = none
  std::string content_type;  // after <|constrain|>, "json" or empty
  bool incomplete = false;   // parser: the stream ended or the header was malformed
};

struct HarmonyParameter {
  std::string name, type, description,
      default_value;  // type as it is to be written, e.g. "string", "\"a\" | \"b\""
  bool required = true;
};

struct HarmonyTool {
  std::string name, description;
  std::vector<HarmonyParameter> parameters;
};

struct HarmonyOptions {
  ReasoningEffort reasoning = ReasoningEffort::medium;
  std::string current_date;  // "2025-06-28"; empty = today
  std::vector<HarmonyTool> tools;
  bool hf_template = false;  // byte for byte what the published chat_template.jinja writes
  bool add_generation_prompt = true;
};

// Messages with role system or developer become developer instructions; the system message itself is
// written from the options. InvalidArgument when the tokenizer lacks a harmony special token.
std::vector<int32_t> render_harmony(const Tokenizer& tokenizer, const std::vector<HarmonyMessage>& messages,
                                    const HarmonyOptions& options = {});
std::string render_harmony_text(const std::vector<HarmonyMessage>& messages,
                                const HarmonyOptions& options = {});

bool has_harmony_tokens(const Tokenizer& tokenizer);

// One piece of streamed output: text that belongs to the message being written.
struct HarmonyDelta {
  std::string channel;    // of the message: "analysis", "commentary", "final" or what the model wrote
  std::string recipient;  // of the message: the tool it calls, empty for the user
  std::string text;
};

// What a person is meant to read: neither analysis nor commentary, and not a call of a tool.
bool is_answer(std::string_view channel, std::string_view recipient);

// Token-driven; starts inside the header of an assistant message. Never throws on model output.
class HarmonyParser {
 public:
  explicit HarmonyParser(const Tokenizer& tokenizer);
  ~HarmonyParser();
  HarmonyDelta push(int32_t id);                        // the text this token adds (may be empty)
  HarmonyDelta finish();                                // closes an open message as incomplete
  const std::vector<HarmonyMessage>& messages() const;  // completed so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trivium::io
