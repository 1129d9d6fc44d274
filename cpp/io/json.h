// JSON from untrusted files (nlohmann's SAX parser under our limits) and a writer that cannot fail.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/error.h"

namespace trivium::io {

struct JsonLimits {
  size_t max_bytes = 1 << 20;
  int max_depth = 64;
};

// Receives events in document order. Integers that fit in 64 bits arrive as integers, others as numbers.
class JsonHandler {
 public:
  virtual ~JsonHandler() = default;
  virtual void on_null() = 0;
  virtual void on_bool(bool value) = 0;
  virtual void on_integer(int64_t value) = 0;    // negative, or fits in int64
  virtual void on_unsigned(uint64_t value) = 0;  // above 2^63 - 1
  virtual void on_number(double value) = 0;      // finite: 1e999 is an error
  virtual void on_string(std::string_view value) = 0;
  virtual void on_key(std::string_view key) = 0;
  virtual void on_start_object() = 0;
  virtual void on_end_object() = 0;
  virtual void on_start_array() = 0;
  virtual void on_end_array() = 0;
};

// ModelFormatError "NAME: invalid JSON at byte N: ..." on anything ill-formed or over the limits.
void parse_json(std::string_view text, const std::string& name, const JsonLimits& limits,
                JsonHandler& handler);

// A small document as a tree; duplicate keys are an error. For config files, JSONL lines, indexes: never for
// tokenizers or other large files.
class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Object = std::map<std::string, JsonValue, std::less<>>;
  std::variant<std::nullptr_t, bool, int64_t, uint64_t, double, std::string, Array, Object> value = nullptr;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value); }
  const Object* object() const { return std::get_if<Object>(&value); }
  const Array* array() const { return std::get_if<Array>(&value); }
  const std::string* string() const { return std::get_if<std::string>(&value); }
  const bool* boolean() const { return std::get_if<bool>(&value); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value); }
  bool is_number() const {
    return is_integer() || std::holds_alternative<uint64_t>(value) || std::holds_alternative<double>(value);
  }
  int64_t integer() const { return std::get<int64_t>(value); }  // only when is_integer()
  double number() const;                                        // only when is_number()
  const JsonValue* find(std::string_view key) const;  // null when absent, null-valued or not an object
};

JsonValue parse_json_document(std::string_view text, const std::string& name, const JsonLimits& limits = {});

// Appends JSON to a string. Ill-formed UTF-8 becomes U+FFFD; never throws on content.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view text);
  JsonWriter& integer(int64_t value);
  JsonWriter& number(double value);  // shortest form that reads back; NaN and infinities become null
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  const std::string& text() const { return out_; }

 private:
  void separate();
  std::string out_;
  std::vector<bool> needs_comma_;
  bool after_key_ = false;
};

}  // namespace trivium::io
