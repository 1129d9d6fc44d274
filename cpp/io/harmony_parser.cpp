// Harmony parser: driven by special tokens, never by text, and able to go on from any of them in any state.
#include <array>
#include <string_view>

#include "io/harmony.h"
#include "io/harmony_tokens.h"

namespace trivium::io {

namespace {

enum Part { kRole, kChannel, kConstrain };  // of a header, by the special token before it

// The next word of `text`, empty at its end.
std::string_view take_word(std::string_view& text) {
  const auto is_space = [](char c) { return static_cast<unsigned char>(c) <= ' '; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  size_t length = 0;
  while (length < text.size() && !is_space(text[length])) ++length;
  const std::string_view word = text.substr(0, length);
  text.remove_prefix(length);
  return word;
}

bool has_word(std::string_view text) { return !take_word(text).empty(); }

bool is_known_role(std::string_view word) {
  return word == "assistant" || word == "user" || word == "developer" || word == "system" ||
         word.starts_with("functions.");
}

}  // namespace

struct HarmonyParser::State {
  enum class Where { header, content, between };

  explicit State(const Tokenizer& t)
      : tokenizer(t),
        start(harmony_token(t, kHarmonyStart)),
        message(harmony_token(t, kHarmonyMessage)),
        channel(harmony_token(t, kHarmonyChannel)),
        constrain(harmony_token(t, kHarmonyConstrain)),
        closing{harmony_token(t, kHarmonyEnd), harmony_token(t, kHarmonyReturn),
                harmony_token(t, kHarmonyCall)},
        text(t) {}

  HarmonyDelta push(int32_t id) {
    if (!tokenizer.is_special(id)) return push_text(id);
    HarmonyDelta delta;
    if (id == start) {
      delta = close(false);
      where = Where::header;
      role_expected = true;
    } else if (id == channel) {
      if (where != Where::header) delta = close(false);  // the model left out <|start|>assistant
      where = Where::header;
      malformed |= has_channel;
      has_channel = true;
      part = kChannel;
      parts[part].clear();
    } else if (id == constrain) {
      if (where == Where::header) part = kConstrain;
    } else if (id == message) {
      if (where == Where::between) delta = close(false);
      if (where != Where::content) open();
    } else if (id == closing[0] || id == closing[1] || id == closing[2]) {
      delta = close(true);
    }
    return delta;  // other special tokens say nothing
  }

  HarmonyDelta push_text(int32_t id) {
    if (where == Where::between && messages.empty()) where = Where::header;  // nothing to attach the text to
    if (where == Where::header) {
      parts[part] += tokenizer.token_bytes(id);
      return {};
    }
    return add(where == Where::content ? current : messages.back(), text.push(id));
  }

  static HarmonyDelta add(HarmonyMessage& to, std::string piece) {
    to.content += piece;
    return {to.channel, to.recipient, std::move(piece)};
  }

  void open() {
    read_header();
    where = Where::content;
  }

  // Ends whatever is open; `complete`: by a closing token.
  HarmonyDelta close(bool complete) {
    HarmonyDelta delta;
    if (where == Where::content) {
      delta = add(current, text.finish());
      current.incomplete |= !complete;
      messages.push_back(std::move(current));
    } else if (where == Where::between) {
      if (!messages.empty()) delta = add(messages.back(), text.finish());
    } else if (has_channel || has_word(parts[kRole]) || has_word(parts[kConstrain])) {
      const bool is_content = read_header();
      current.incomplete = true;
      if (is_content) delta = add(current, sanitize_utf8(parts[kRole]));
      messages.push_back(std::move(current));
    }
    reset_header();
    where = Where::between;
    return delta;
  }

  void reset_header() {
    for (std::string& collected : parts) collected.clear();
    part = kRole;
    has_channel = malformed = role_expected = false;
  }

  // Reads the header collected so far into `current`. True when it is no header but text that a model wrote
  // without one.
  bool read_header() {
    current = {};
    current.role = "assistant";
    current.channel = "final";
    bool extra = false;
    const std::string role = sanitize_utf8(parts[kRole]), rest = sanitize_utf8(parts[kChannel]),
                      type = sanitize_utf8(parts[kConstrain]);
    bool first = true;
    read_words(role, [&](std::string_view word) {
      if (first && (role_expected || is_known_role(word))) {
        current.role = word;
      } else {
        extra = true;
      }
      first = false;
    });
    const bool is_content = extra && !role_expected && !has_channel;
    first = true;
    const auto read_type = [&](std::string_view word) {
      extra |= !current.content_type.empty();
      current.content_type = word;
    };
    read_words(rest, [&](std::string_view word) {
      if (first) {
        current.channel = word;
      } else {
        read_type(word);
      }
      first = false;
    });
    read_words(type, read_type);
    current.incomplete = extra || malformed;
    return is_content;
  }

  // Calls `use` with each word but "to=X", which is the recipient wherever it stands.
  template <class Use>
  void read_words(std::string_view words, const Use& use) {
    for (std::string_view word = take_word(words); !word.empty(); word = take_word(words)) {
      if (word.starts_with("to=")) {
        current.recipient = word.substr(3);
      } else {
        use(word);
      }
    }
  }

  const Tokenizer& tokenizer;
  const int32_t start, message, channel, constrain;
  const std::array<int32_t, 3> closing;

  Where where = Where::header;
  std::array<std::string, 3> parts;  // bytes of the header
  Part part = kRole;                 // that text goes to
  bool has_channel = false, malformed = false;
  bool role_expected = false;  // the header began with <|start|>: its first word is the role
  StreamDecoder text;
  HarmonyMessage current;  // header of the message whose content is being read, and the content
  std::vector<HarmonyMessage> messages;
};

bool is_answer(std::string_view channel, std::string_view recipient) {
  return recipient.empty() && channel != "analysis" && channel != "commentary";
}

HarmonyParser::HarmonyParser(const Tokenizer& tokenizer) : state_(std::make_unique<State>(tokenizer)) {}
HarmonyParser::~HarmonyParser() = default;

HarmonyDelta HarmonyParser::push(int32_t id) { return state_->push(id); }
HarmonyDelta HarmonyParser::finish() { return state_->close(false); }
const std::vector<HarmonyMessage>& HarmonyParser::messages() const { return state_->messages; }

}  // namespace trivium::io
