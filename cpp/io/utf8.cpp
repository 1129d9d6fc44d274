#include "io/utf8.h"

#include <algorithm>

#include "io/tokenizer.h"

namespace trivium::io {

namespace {

struct Lead {
  int length;               // of the sequence, 0: not a lead byte
  unsigned char low, high;  // allowed range of the second byte (Unicode table 3-7)
  int32_t bits;             // payload of the lead byte
};

Lead read_lead(unsigned char byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF, byte & 0x1F};
  if (byte == 0xE0) return {3, 0xA0, 0xBF, 0};
  if (byte == 0xED) return {3, 0x80, 0x9F, 0xD};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF, byte & 0xF};
  if (byte == 0xF0) return {4, 0x90, 0xBF, 0};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF, byte & 7};
  if (byte == 0xF4) return {4, 0x80, 0x8F, 4};
  return {0, 0, 0, 0};
}

}  // namespace

Utf8Unit decode_utf8(std::string_view text, size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  if (byte < 0x80) return {byte, 1, false};
  const Lead lead = read_lead(byte);
  if (lead.length == 0) return {-1, 1, false};
  int32_t code_point = lead.bits;
  for (int i = 1; i < lead.length; ++i) {
    if (offset + static_cast<size_t>(i) >= text.size()) return {-1, i, true};
    const auto next = static_cast<unsigned char>(text[offset + static_cast<size_t>(i)]);
    const unsigned char low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (next < low || next > high) return {-1, i, false};
    code_point = code_point << 6 | (next & 0x3F);
  }
  return {code_point, lead.length, false};
}

size_t find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Unit unit = decode_utf8(text, i);
    if (unit.code_point < 0) return i;
    i += static_cast<size_t>(unit.length);
  }
  return std::string_view::npos;
}

size_t incomplete_utf8_tail(std::string_view text) {
  for (size_t n = 1; n <= std::min<size_t>(3, text.size()); ++n) {
    const Utf8Unit unit = decode_utf8(text, text.size() - n);
    if (unit.truncated && static_cast<size_t>(unit.length) == n) return n;
  }
  return 0;
}

void append_utf8(std::string& out, char32_t code_point) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

std::string sanitize_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  size_t copied = 0;
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Unit unit = decode_utf8(bytes, i);
    if (unit.code_point < 0) {
      out.append(bytes, copied, i - copied);
      append_utf8(out, 0xFFFD);
      copied = i + static_cast<size_t>(unit.length);
    }
    i += static_cast<size_t>(unit.length);
  }
  out.append(bytes, copied);
  return out;
}

}  // namespace trivium::io
