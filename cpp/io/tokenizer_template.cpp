#include "io/tokenizer_template.h"

#include "core/error.h"

namespace trivium::io {

namespace {

template <class... Why>
[[noreturn]] void fail(const TokenizerParts& parts, const Why&... why) {
  throw ModelFormatError(concat(parts.name, ": post_processor ", why...));
}

const JsonValue::Array& array_of(const JsonValue* value) {
  static const JsonValue::Array kNone;
  return value && value->array() ? *value->array() : kNone;
}

std::string text_of(const JsonValue* value) {
  return value && value->string() ? *value->string() : std::string();
}

bool is_token(const TokenizerParts& parts, const JsonValue& id) {
  if (!id.is_integer() || id.integer() < 0 || id.integer() >= kMaxVocab) return false;
  for (const Vocabulary* tokens : {&parts.specials, &parts.ordinary, &parts.added, &parts.added_normalized})
    if (tokens->has(static_cast<int32_t>(id.integer()))) return true;
  return false;
}

void read_template(const JsonValue& post, TokenizerParts& parts) {
  int texts = 0;
  for (const JsonValue& part : array_of(post.find("single"))) {
    if (part.find("Sequence")) {
      ++texts;
      continue;
    }
    const JsonValue* special = part.find("SpecialToken");
    const std::string name = text_of(special ? special->find("id") : nullptr);
    const JsonValue* tokens = post.find("special_tokens");
    const JsonValue* entry = tokens ? tokens->find(name) : nullptr;
    const JsonValue::Array& ids = array_of(entry ? entry->find("ids") : nullptr);
    if (ids.empty()) fail(parts, "TemplateProcessing has no ids for \"", printable(name), "\"");
    for (const JsonValue& id : ids) {
      if (!is_token(parts, id))
        fail(parts, "TemplateProcessing gives \"", printable(name), "\" an id that is not in the vocabulary");
      (texts > 0 ? parts.suffix : parts.prefix).push_back(static_cast<int32_t>(id.integer()));
    }
  }
  if (texts != 1) fail(parts, "TemplateProcessing has ", texts, " places for a text, expected 1");
}

}  // namespace

void read_post_processor(const JsonValue& post, TokenizerParts& parts) {
  const bool sequence = text_of(post.find("type")) == "Sequence";
  const JsonValue::Array one{post};
  bool seen = false;
  for (const JsonValue& step : sequence ? array_of(post.find("processors")) : one) {
    const std::string type = text_of(step.find("type"));
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing" || seen)
      fail(parts, "\"", printable(type.empty() ? "(no type)" : type), "\" is not supported",
           seen ? " a second time" : "");
    seen = true;
    read_template(step, parts);
  }
}

}  // namespace trivium::io
