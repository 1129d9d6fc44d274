#include "io/harmony.h"

#include <algorithm>
#include <ctime>
#include <string_view>

#include "core/error.h"
#include "io/harmony_tokens.h"

namespace trivium::io {

namespace {

struct Segment {
  const char* special;  // name of a special token, or null: `text`
  std::string text;
};

// A conversation as text and special tokens. Text between two special tokens stays one segment, so that it is
// encoded as a whole.
class Script {
 public:
  Script& text(std::string_view text) {
    if (segments_.empty() || segments_.back().special) segments_.push_back({nullptr, {}});
    segments_.back().text += text;
    return *this;
  }
  Script& special(const char* name) {
    segments_.push_back({name, {}});
    return *this;
  }
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  std::vector<Segment> segments_;
};

bool is_instructions(const HarmonyMessage& message) {
  return message.role == "system" || message.role == "developer";
}
bool is_assistant(const HarmonyMessage& message) { return message.role == "assistant"; }
bool is_call(const HarmonyMessage& message) { return is_assistant(message) && !message.recipient.empty(); }
bool is_analysis(const HarmonyMessage& message) {
  return is_assistant(message) && message.channel == "analysis";
}
bool is_final(const HarmonyMessage& message) {
  return is_assistant(message) && !is_call(message) &&
         (message.channel.empty() || message.channel == "final");
}

// Header words are written as text beside special tokens: white space in one could forge another.
void check_header_word(const std::string& word, const char* field) {
  const bool clean =
      std::none_of(word.begin(), word.end(), [](char c) { return static_cast<unsigned char>(c) <= ' '; });
  TRIVIUM_CHECK(clean, "chat message: ", field, " \"", printable(word),
                "\" has white space or control characters");
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  char text[16] = "";
  if (localtime_r(&now, &local)) std::strftime(text, sizeof(text), "%Y-%m-%d", &local);
  return text;
}

const char* effort_name(ReasoningEffort effort) {
  switch (effort) {
    case ReasoningEffort::low:
      return "low";
    case ReasoningEffort::medium:
      return "medium";
    case ReasoningEffort::high:
      return "high";
  }
  return "medium";
}

std::string json_string(std::string_view text) {  // as Python's json.dumps(ensure_ascii=False) writes it
  static constexpr char kHex[] = "0123456789abcdef";
  static constexpr std::string_view kNamed = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (const size_t named = kNamed.find(c); named != std::string_view::npos) {
      out += {'\\', kLetters[named]};
    } else if (byte < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string comment(std::string_view text, bool each_line) {
  std::string out = "// ";
  for (const char c : text) {
    out += c;
    if (c == '\n' && each_line) out += "// ";
  }
  return out + "\n";
}

class Renderer {
 public:
  Renderer(const std::vector<HarmonyMessage>& messages, const HarmonyOptions& options)
      : messages_(messages), options_(options) {}

  Script render() {
    for (const HarmonyMessage& message : messages_) {
      check_header_word(message.role, "role");
      check_header_word(message.channel, "channel");
      check_header_word(message.recipient, "recipient");
      check_header_word(message.content_type, "content type");
      TRIVIUM_CHECK(!message.role.empty(), "chat message: the role is empty");
    }
    write_system();
    size_t first = 0;
    std::string instructions;
    for (; first < messages_.size() && is_instructions(messages_[first]); ++first) {
      TRIVIUM_CHECK(!options_.hf_template || first == 0,
                    "chat messages: the published template takes one system or developer message, the first, "
                    "but message ",
                    first, " is another");
      if (first > 0) instructions += "\n\n";
      instructions += messages_[first].content;
    }
    if (!instructions.empty() || !options_.tools.empty()) write_developer(instructions, options_.tools);
    for (size_t i = first; i < messages_.size(); ++i) write_message(i);
    if (options_.add_generation_prompt) script_.special(kHarmonyStart).text("assistant");
    return std::move(script_);
  }

 private:
  void write_system() {
    script_.special(kHarmonyStart).text("system").special(kHarmonyMessage);
    script_.text(
        "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent "
        "date: ");
    script_.text(options_.current_date.empty() ? today() : options_.current_date);
    script_.text("\n\nReasoning: ").text(effort_name(options_.reasoning));
    script_.text(
        "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.");
    if (!options_.tools.empty()) {
      script_.text("\nCalls to these tools must go to the commentary channel: 'functions'.");
    }
    script_.special(kHarmonyEnd);
  }

  void write_developer(const std::string& instructions, const std::vector<HarmonyTool>& tools) {
    script_.special(kHarmonyStart).text("developer").special(kHarmonyMessage);
    if (!instructions.empty()) {
      script_.text("# Instructions\n\n").text(instructions);
      if (options_.hf_template || !tools.empty()) script_.text("\n\n");
    }
    if (!tools.empty()) {
      script_.text("# Tools\n\n## functions\n\nnamespace functions {\n\n");
      for (const HarmonyTool& tool : tools) write_tool(tool);
      script_.text("} // namespace functions");
    }
    script_.special(kHarmonyEnd);
  }

  void write_tool(const HarmonyTool& tool) {
    const bool hf = options_.hf_template;
    if (hf || !tool.description.empty()) script_.text(comment(tool.description, !hf));
    script_.text("type ").text(tool.name).text(" = ");
    if (tool.parameters.empty()) {
      script_.text("() => any;\n\n");
      return;
    }
    script_.text("(_: {\n");
    for (const HarmonyParameter& parameter : tool.parameters) {
      if (!parameter.description.empty()) script_.text(comment(parameter.description, false));
      script_.text(parameter.name).text(parameter.required ? ": " : "?: ").text(parameter.type).text(",");
      if (!parameter.default_value.empty()) {
        script_.text(" // default: ").text(parameter.default_value).text(hf ? "," : "");
      }
      script_.text("\n");
    }
    script_.text("}) => any;\n\n");
  }

  void write_message(size_t index) {
    const HarmonyMessage& message = messages_[index];
    if (is_instructions(message)) {
      TRIVIUM_CHECK(!options_.hf_template,
                    "chat messages: the published template takes a system or developer message only ",
                    "at the start, but message ", index, " is one");
      write_developer(message.content, {});
    } else if (message.role == "user") {
      write(message.role, "", "", "", message.content, kHarmonyEnd);
    } else if (!is_assistant(message)) {
      write_tool_result(index);
    } else if (is_call(message)) {
      write_call(message);
    } else if (!is_analysis(message) || keeps_analysis(index)) {
      const bool closes_training_text = options_.hf_template && !options_.add_generation_prompt &&
                                        index + 1 == messages_.size() && is_final(message);
      write("assistant", "", message.channel.empty() ? "final" : message.channel, "", message.content,
            closes_training_text ? kHarmonyReturn : kHarmonyEnd);
    }
  }

  void write_call(const HarmonyMessage& message) {
    const std::string channel = message.channel.empty() ? "commentary" : message.channel;
    if (options_.hf_template) {  // the content type is plain text there
      const std::string type = message.content_type.empty() ? "json" : message.content_type;
      write("assistant", message.recipient, channel + " " + type, "", message.content, kHarmonyCall);
    } else {
      write("assistant", message.recipient, channel, message.content_type, message.content, kHarmonyCall);
    }
  }

  void write_tool_result(size_t index) {
    const HarmonyMessage& message = messages_[index];
    std::string name = message.role;
    if (name == "tool") {  // answers the last call
      name.clear();
      for (size_t i = 0; i < index; ++i) {
        if (is_call(messages_[i])) name = messages_[i].recipient;
      }
      TRIVIUM_CHECK(!name.empty(), "chat messages: message ", index,
                    " has role \"tool\" but no call comes before it");
    }
    write(name, message.recipient.empty() ? "assistant" : message.recipient,
          message.channel.empty() ? "commentary" : message.channel, message.content_type,
          options_.hf_template ? json_string(message.content) : message.content, kHarmonyEnd);
  }

  // Reasoning stays only while a chain of tool calls is unfinished: a call, but no final answer, follows it
  // or came before it in the same turn. The template also keeps it before an answer that ends a training
  // text.
  bool keeps_analysis(size_t index) const {
    for (size_t i = index + 1; i < messages_.size(); ++i) {
      if (!is_final(messages_[i])) continue;
      return options_.hf_template && !options_.add_generation_prompt && i == index + 1 &&
             i + 1 == messages_.size();
    }
    const auto calls_from = [this](size_t begin) {
      for (size_t i = begin; i < messages_.size() && messages_[i].role != "user"; ++i) {
        if (is_call(messages_[i])) return true;
      }
      return false;
    };
    size_t turn = index;
    while (turn > 0 && messages_[turn - 1].role != "user" && !is_final(messages_[turn - 1])) --turn;
    return calls_from(turn);
  }

  void write(const std::string& role, const std::string& recipient, const std::string& channel,
             const std::string& constrain, const std::string& content, const char* closing) {
    script_.special(kHarmonyStart).text(role);
    if (!recipient.empty()) script_.text(" to=").text(recipient);
    if (!channel.empty()) script_.special(kHarmonyChannel).text(channel);
    if (!constrain.empty()) script_.text(" ").special(kHarmonyConstrain).text(constrain);
    script_.special(kHarmonyMessage);
    if (!content.empty()) script_.text(content);
    script_.special(closing);
  }

  const std::vector<HarmonyMessage>& messages_;
  const HarmonyOptions& options_;
  Script script_;
};

}  // namespace

int32_t harmony_token(const Tokenizer& tokenizer, const char* name) {
  const std::optional<int32_t> id = tokenizer.special_id(name);
  TRIVIUM_CHECK(id.has_value(), "the tokenizer has no special token \"", name,
                "\", which the harmony chat format needs");
  return *id;
}

bool has_harmony_tokens(const Tokenizer& tokenizer) {
  const auto has = [&](const char* name) { return tokenizer.special_id(name).has_value(); };
  return has(kHarmonyStart) && has(kHarmonyMessage) && has(kHarmonyChannel) && has(kHarmonyConstrain) &&
         has(kHarmonyEnd) && has(kHarmonyReturn) && has(kHarmonyCall);
}

std::vector<int32_t> render_harmony(const Tokenizer& tokenizer, const std::vector<HarmonyMessage>& messages,
                                    const HarmonyOptions& options) {
  std::vector<int32_t> ids;
  const Script script = Renderer(messages, options).render();
  for (const Segment& segment : script.segments()) {
    if (segment.special) {
      ids.push_back(harmony_token(tokenizer, segment.special));
    } else {
      const std::vector<int32_t> text = tokenizer.encode(segment.text);
      ids.insert(ids.end(), text.begin(), text.end());
    }
  }
  return ids;
}

std::string render_harmony_text(const std::vector<HarmonyMessage>& messages, const HarmonyOptions& options) {
  std::string text;
  const Script script = Renderer(messages, options).render();
  for (const Segment& segment : script.segments()) text += segment.special ? segment.special : segment.text;
  return text;
}

}  // namespace trivium::io
