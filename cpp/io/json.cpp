#include "io/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

#include "io/tokenizer.h"

namespace trivium::io {
namespace {

// A deeper tree would overflow the stack when it is destroyed.
constexpr int kMaxTreeDepth = 1000;

[[noreturn]] void fail(const std::string& name, size_t position, const std::string& why) {
  throw ModelFormatError(concat(name, ": invalid JSON at byte ", position, ": ", why));
}

// Walks the text and publishes how many bytes the parser has read, for error messages.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, size_t* position) : at_(at), position_(position) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*position_;
    return *this;
  }
  CountingIterator operator++(int) {
    const CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  size_t* position_;
};

// nlohmann's SAX events, forwarded to our handler. Returning false stops the parser.
class SaxAdapter {
 public:
  SaxAdapter(JsonHandler& handler, int max_depth) : handler_(handler), max_depth_(max_depth) {}
  const std::string& error() const { return error_; }

  bool null() { return handler_.on_null(), true; }
  bool boolean(bool value) { return handler_.on_bool(value), true; }
  bool number_integer(int64_t value) { return handler_.on_integer(value), true; }
  bool number_unsigned(uint64_t value) {
    if (value > static_cast<uint64_t>(INT64_MAX))
      handler_.on_unsigned(value);
    else
      handler_.on_integer(static_cast<int64_t>(value));
    return true;
  }
  bool number_float(double value, const std::string&) { return handler_.on_number(value), true; }
  bool string(std::string& value) { return handler_.on_string(value), true; }
  bool key(std::string& value) { return handler_.on_key(value), true; }
  bool start_object(size_t) { return enter() && (handler_.on_start_object(), true); }
  bool start_array(size_t) { return enter() && (handler_.on_start_array(), true); }
  bool end_object() {
    --depth_;
    return handler_.on_end_object(), true;
  }
  bool end_array() {
    --depth_;
    return handler_.on_end_array(), true;
  }
  template <class Binary>
  bool binary(Binary&) {  // only for binary formats such as CBOR
    return false;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& exception) {
    // "[json.exception.parse_error.101] parse error at line 1, column 3: syntax error while ..."
    std::string_view text = exception.what();
    const size_t syntax = text.find("syntax error");
    const size_t bracket = text.find("] ");
    if (syntax != std::string_view::npos)
      text.remove_prefix(syntax);
    else if (bracket != std::string_view::npos)
      text.remove_prefix(bracket + 2);
    error_ = printable(text, 200);
    return false;
  }

 private:
  bool enter() {
    if (++depth_ <= max_depth_) return true;
    error_ = concat("nesting is deeper than ", max_depth_, " levels");
    return false;
  }

  JsonHandler& handler_;
  int max_depth_;
  int depth_ = 0;
  std::string error_;
};

// `position` counts the bytes read so far while handler events run.
void parse_counted(std::string_view text, const std::string& name, const JsonLimits& limits,
                   JsonHandler& handler, size_t& position) {
  position = 0;
  if (text.size() > limits.max_bytes)
    fail(name, limits.max_bytes,
         concat("the document has ", text.size(), " bytes, at most ", limits.max_bytes, " are accepted"));
  // Two things the parser lets pass: it skips a byte-order mark, and takes a NUL byte for the end.
  if (text.starts_with("\xEF\xBB\xBF")) fail(name, 0, "a byte-order mark is not allowed");
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    fail(name, nul, "a NUL byte is not allowed");

  SaxAdapter adapter(handler, limits.max_depth);
  const CountingIterator begin(text.data(), &position);
  const CountingIterator end(text.data() + text.size(), &position);
  if (!nlohmann::json::sax_parse(begin, end, &adapter)) fail(name, position, adapter.error());
}

class TreeBuilder final : public JsonHandler {
 public:
  TreeBuilder(const std::string& name, const size_t& position) : name_(name), position_(position) {}
  JsonValue take() { return std::move(root_); }

  void on_null() override { add(JsonValue{}); }
  void on_bool(bool value) override { add(JsonValue{value}); }
  void on_integer(int64_t value) override { add(JsonValue{value}); }
  void on_unsigned(uint64_t value) override { add(JsonValue{value}); }
  void on_number(double value) override { add(JsonValue{value}); }
  void on_string(std::string_view value) override { add(JsonValue{std::string(value)}); }
  void on_start_object() override { open_.push_back(add(JsonValue{JsonValue::Object()})); }
  void on_end_object() override { open_.pop_back(); }
  void on_start_array() override { open_.push_back(add(JsonValue{JsonValue::Array()})); }
  void on_end_array() override { open_.pop_back(); }
  void on_key(std::string_view key) override {
    auto& object = std::get<JsonValue::Object>(open_.back()->value);
    const auto [entry, added] = object.try_emplace(std::string(key));
    if (!added) fail(name_, position_, concat("key \"", printable(key), "\" appears twice"));
    member_ = &entry->second;
  }

 private:
  // Stores `value` where the document is now. The pointer stays valid while the value is open: an array
  // grows only after its last element is closed.
  JsonValue* add(JsonValue&& value) {
    JsonValue* place = &root_;
    if (!open_.empty()) {
      if (auto* array = std::get_if<JsonValue::Array>(&open_.back()->value))
        place = &array->emplace_back();
      else
        place = member_;
    }
    *place = std::move(value);
    return place;
  }

  const std::string& name_;
  const size_t& position_;
  JsonValue root_;
  std::vector<JsonValue*> open_;
  JsonValue* member_ = nullptr;  // where the value of the last key goes
};

void append_escaped(std::string& out, std::string_view utf8) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (const char c : utf8) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (byte < 0x20) {
          out += "\\u00";
          out += kHex[byte >> 4];
          out += kHex[byte & 15];
        } else {
          out += c;
        }
    }
  }
}

}  // namespace

void parse_json(std::string_view text, const std::string& name, const JsonLimits& limits,
                JsonHandler& handler) {
  size_t position = 0;
  parse_counted(text, name, limits, handler, position);
}

JsonValue parse_json_document(std::string_view text, const std::string& name, const JsonLimits& limits) {
  size_t position = 0;
  TreeBuilder builder(name, position);
  const JsonLimits tree_limits{limits.max_bytes, std::min(limits.max_depth, kMaxTreeDepth)};
  parse_counted(text, name, tree_limits, builder, position);
  return builder.take();
}

double JsonValue::number() const {
  if (const auto* integer_value = std::get_if<int64_t>(&value)) return static_cast<double>(*integer_value);
  if (const auto* unsigned_value = std::get_if<uint64_t>(&value)) return static_cast<double>(*unsigned_value);
  return std::get<double>(value);
}

const JsonValue* JsonValue::find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto found = members->find(key);
  return found == members->end() || found->second.is_null() ? nullptr : &found->second;
}

void JsonWriter::separate() {
  if (after_key_) {
    after_key_ = false;
    return;
  }
  if (needs_comma_.empty()) return;
  if (needs_comma_.back()) out_ += ',';
  needs_comma_.back() = true;
}

JsonWriter& JsonWriter::begin_object() {
  separate();
  out_ += '{';
  needs_comma_.push_back(false);
  return *this;
}

JsonWriter& JsonWriter::end_object() {
  out_ += '}';
  needs_comma_.pop_back();
  return *this;
}

JsonWriter& JsonWriter::begin_array() {
  separate();
  out_ += '[';
  needs_comma_.push_back(false);
  return *this;
}

JsonWriter& JsonWriter::end_array() {
  out_ += ']';
  needs_comma_.pop_back();
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  string(name);
  out_ += ':';
  after_key_ = true;
  return *this;
}

JsonWriter& JsonWriter::string(std::string_view text) {
  separate();
  out_ += '"';
  append_escaped(out_, sanitize_utf8(text));
  out_ += '"';
  return *this;
}

JsonWriter& JsonWriter::integer(int64_t value) {
  separate();
  out_ += std::to_string(value);
  return *this;
}

JsonWriter& JsonWriter::number(double value) {
  if (!std::isfinite(value)) return null();
  separate();
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  out_.append(digits, end);
  if (value == 0.0 && std::signbit(value)) out_ += ".0";  // "-0" would read back as the integer 0
  return *this;
}

JsonWriter& JsonWriter::boolean(bool value) {
  separate();
  out_ += value ? "true" : "false";
  return *this;
}

JsonWriter& JsonWriter::null() {
  separate();
  out_ += "null";
  return *this;
}

}  // namespace trivium::io
