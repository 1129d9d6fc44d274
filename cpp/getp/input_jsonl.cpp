// One line of a JSONL job.
#include <algorithm>
#include <cmath>
#include <limits>

#include "getp/input.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

using io::JsonValue;

constexpr double kNoLimit = 1e300;

// What a value is, for messages.
std::string kind_of(const JsonValue& value) {
  if (value.is_null()) return "null";
  if (value.boolean()) return *value.boolean() ? "true" : "false";
  if (const auto* text = value.string()) return concat('"', printable(*text, 40), '"');
  if (value.is_integer()) return std::to_string(value.integer());
  if (value.is_number()) return concat(value.number());
  return value.array() ? "a list" : "an object";
}

[[noreturn]] void bad(std::string_view key, const JsonValue& value, std::string_view expected) {
  throw InvalidArgument(concat(key, " is ", kind_of(value), ", expected ", expected));
}

int64_t integer_of(std::string_view key, const JsonValue& value, int64_t max) {
  if (!value.is_integer() || value.integer() < 0 || value.integer() > max)
    bad(key, value, concat("an integer from 0 to ", max));
  return value.integer();
}

float number_of(std::string_view key, const JsonValue& value, double max) {
  const double x = value.is_number() ? value.number() : -1;
  if (!(x >= 0 && x <= max && std::isfinite(static_cast<float>(x))))
    bad(key, value, max < kNoLimit ? concat("a number from 0 to ", max) : std::string("a number, 0 or more"));
  return static_cast<float>(x);
}

const std::string& string_of(std::string_view key, const JsonValue& value) {
  if (!value.string()) bad(key, value, "a string");
  return *value.string();
}

std::vector<int32_t> ids_of(const JsonValue::Array& list) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const JsonValue& id : list)
    ids.push_back(
        static_cast<int32_t>(integer_of("a token id of prompt", id, std::numeric_limits<int32_t>::max())));
  return ids;
}

// A string, or a list of parts {"type": "text", "text": ...} that belong together.
std::string content_of(const JsonValue& value) {
  if (value.string()) return *value.string();
  if (!value.array()) bad("a content", value, "a string or a list of text parts");
  std::string content;
  for (const JsonValue& part : *value.array()) {
    const JsonValue* text = part.find("text");
    if (!text || !text->string()) bad("a part of a content", part, "one with a text");
    content += *text->string();
  }
  return content;
}

std::vector<io::HarmonyMessage> messages_of(const JsonValue& value) {
  if (!value.array() || value.array()->empty()) bad("messages", value, "a list of at least one message");
  std::vector<io::HarmonyMessage> messages;
  for (const JsonValue& entry : *value.array()) {
    const JsonValue *role = entry.find("role"), *content = entry.find("content");
    if (!role || !content) throw InvalidArgument("a message needs \"role\" and \"content\"");
    io::HarmonyMessage message;
    message.role = string_of("role", *role);
    message.content = content_of(*content);
    if (const JsonValue* channel = entry.find("channel")) message.channel = string_of("channel", *channel);
    messages.push_back(std::move(message));
  }
  return messages;
}

std::vector<std::string> stops_of(const JsonValue& value) {
  if (value.string()) return {*value.string()};
  if (!value.array()) bad("stop", value, "a string or a list of strings");
  std::vector<std::string> stops;
  for (const JsonValue& entry : *value.array()) stops.push_back(string_of("stop", entry));
  return stops;
}

void read_key(std::string_view key, const JsonValue& value, InputItem& item,
              std::vector<std::string>& unknown) {
  if (key == "prompt") {
    if (value.array())
      item.ids = ids_of(*value.array());
    else
      item.prompt = string_of(key, value);
  } else if (key == "messages") {
    item.messages = messages_of(value);
  } else if (key == "max_tokens") {
    item.max_tokens = integer_of(key, value, std::numeric_limits<int32_t>::max());
  } else if (key == "temperature") {
    item.temperature = number_of(key, value, kNoLimit);
  } else if (key == "top_p") {
    item.top_p = number_of(key, value, 1);
  } else if (key == "min_p") {
    item.min_p = number_of(key, value, 1);
  } else if (key == "top_k") {
    item.top_k = static_cast<int32_t>(integer_of(key, value, std::numeric_limits<int32_t>::max()));
  } else if (key == "seed") {
    if (const auto* large = std::get_if<uint64_t>(&value.value))
      item.seed = *large;
    else if (value.is_integer() && value.integer() >= 0)
      item.seed = static_cast<uint64_t>(value.integer());
    else
      bad(key, value, concat("an integer from 0 to ", std::numeric_limits<uint64_t>::max()));
  } else if (key == "stop") {
    item.stop = stops_of(value);
  } else if (std::find(unknown.begin(), unknown.end(), key) == unknown.end()) {
    unknown.emplace_back(key);
  }
}

}  // namespace

InputItem parse_jsonl_line(const std::string& line, const std::string& name,
                           std::vector<std::string>& unknown_keys) {
  InputItem item;
  try {
    const JsonValue document =
        io::parse_json_document(line, name, {.max_bytes = line.size(), .max_depth = 64});
    if (!document.object()) bad(name, document, "an object");
    if (const JsonValue* id = document.find("custom_id")) {
      if (id->is_integer())
        item.custom_id = std::to_string(id->integer());
      else if (id->string())
        item.custom_id = *id->string();
      else
        bad("custom_id", *id, "a string or an integer of 64 bits");
    }
    const bool prompt = document.find("prompt"), messages = document.find("messages");
    if (prompt == messages)
      throw InvalidArgument(concat(name, prompt ? " has both" : " has neither", " \"prompt\" ",
                                   prompt ? "and" : "nor", " \"messages\"; exactly one is needed"));
    for (const auto& [key, value] : *document.object())
      if (key != "custom_id" && !value.is_null()) read_key(key, value, item, unknown_keys);
  } catch (const Error& error) {
    InputItem failed;
    failed.custom_id = item.custom_id;
    failed.error = error.what();
    if (failed.error.find(name) == std::string::npos) failed.error = concat(name, ": ", failed.error);
    return failed;
  }
  return item;
}

}  // namespace trivium::getp
