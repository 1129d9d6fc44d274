#include "core/error.h"

#include <cstdio>
#include <cstdlib>

namespace trivium {

namespace {

// With the bytes for which escaped(byte) is true as \xNN.
template <class Escaped>
std::string with_escapes(std::string_view text, Escaped&& escaped) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (!escaped(byte)) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out;
}

bool is_control(unsigned char byte) { return byte < 0x20 || byte == 0x7f; }

}  // namespace

std::string printable(std::string_view text, size_t limit) {
  std::string out =
      with_escapes(text.substr(0, limit), [](unsigned char byte) { return is_control(byte) || byte > 0x7f; });
  if (text.size() > limit) out += "...";
  return out;
}

std::string one_line(std::string_view text) { return with_escapes(text, is_control); }

void throw_check_failed(const char* file, int line, const std::string& message) {
  static const bool trace = std::getenv("TRIVIUM_TRACE_ERRORS") != nullptr;
  if (trace) std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
  throw InvalidArgument(message);
}

}  // namespace trivium
