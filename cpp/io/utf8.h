// UTF-8 as Unicode chapter 3 defines it (no overlong forms, no surrogates, nothing above U+10FFFF).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trivium::io {

struct Utf8Unit {
  int32_t code_point;  // -1: ill-formed
  int length;          // bytes; of an ill-formed unit: its maximal subpart (at least 1)
  bool truncated;      // ill-formed only because the text ends inside a sequence
};

// The unit that begins at `text[offset]`; offset < text.size().
Utf8Unit decode_utf8(std::string_view text, size_t offset);

// Byte offset of the first ill-formed sequence, npos when there is none.
size_t find_invalid_utf8(std::string_view text);

// Bytes at the end of `text` that begin a sequence which further bytes could complete (0 to 3).
size_t incomplete_utf8_tail(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);

}  // namespace trivium::io
