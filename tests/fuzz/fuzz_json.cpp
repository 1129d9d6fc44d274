// Any bytes are parsed or refused with a ModelFormatError; what was parsed can be written and reads back
// equal.
#include <cstdlib>

#include "io/json.h"

namespace {

using trivium::io::JsonValue;
using trivium::io::JsonWriter;

void write(JsonWriter& out, const JsonValue& json) {
  if (const auto* object = json.object()) {
    out.begin_object();
    for (const auto& [key, member] : *object) write(out.key(key), member);
    out.end_object();
  } else if (const auto* array = json.array()) {
    out.begin_array();
    for (const JsonValue& element : *array) write(out, element);
    out.end_array();
  } else if (const auto* string = json.string()) {
    out.string(*string);
  } else if (const auto* boolean = json.boolean()) {
    out.boolean(*boolean);
  } else if (json.is_integer()) {
    out.integer(json.integer());
  } else if (json.is_number()) {
    out.number(json.number());
  } else {
    out.null();
  }
}

// Numbers by value: 1.0 is written as 1.
bool same(const JsonValue& a, const JsonValue& b) {
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (const auto *x = a.object(), *y = b.object(); x && y) {
    if (x->size() != y->size()) return false;
    for (auto i = x->begin(), j = y->begin(); i != x->end(); ++i, ++j)
      if (i->first != j->first || !same(i->second, j->second)) return false;
    return true;
  }
  if (const auto *x = a.array(), *y = b.array(); x && y) {
    if (x->size() != y->size()) return false;
    for (size_t i = 0; i < x->size(); ++i)
      if (!same((*x)[i], (*y)[i])) return false;
    return true;
  }
  if (a.string() && b.string()) return *a.string() == *b.string();
  if (a.boolean() && b.boolean()) return *a.boolean() == *b.boolean();
  return a.is_null() && b.is_null();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  JsonWriter any;
  any.string(bytes);
  trivium::io::parse_json_document(any.text(), "any string", {.max_bytes = 1 << 26, .max_depth = 64});
  JsonValue parsed;
  try {
    parsed = trivium::io::parse_json_document(bytes, "input");
  } catch (const trivium::ModelFormatError&) {
    return 0;
  }
  JsonWriter out;
  write(out, parsed);
  const JsonValue again = trivium::io::parse_json_document(out.text(), "written", {1 << 26, 64});
  if (!same(parsed, again)) std::abort();
  return 0;
}
