#include "core/error.h"

#include <cstdio>
#include <cstdlib>

namespace trivium {

std::string printable(std::string_view text, size_t limit) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  if (text.size() > limit) out += "...";
  return out;
}

void throw_check_failed(const char* file, int line, const std::string& message) {
  static const bool trace = std::getenv("TRIVIUM_TRACE_ERRORS") != nullptr;
  if (trace) std::fprintf(stderr, "%s:%d: %s\n", file, line, message.c_str());
  throw InvalidArgument(message);
}

}  // namespace trivium
