#include "io/tokenizer_byte_map.h"

#include <array>
#include <cstdint>

#include "io/utf8.h"

namespace trivium::io {

namespace {

constexpr size_t kNumCodePoints = 0x144;  // 256 + 68

std::array<int16_t, kNumCodePoints> make_byte_of_code_point() {
  std::array<int16_t, kNumCodePoints> byte_of{};
  byte_of.fill(-1);
  size_t moved = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool kept = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    byte_of[kept ? static_cast<size_t>(byte) : moved++] = static_cast<int16_t>(byte);
  }
  return byte_of;
}

}  // namespace

bool undo_byte_map(std::string_view text, std::string& bytes) {
  static const std::array<int16_t, kNumCodePoints> byte_of = make_byte_of_code_point();
  bytes.clear();
  for (size_t i = 0; i < text.size();) {
    const Utf8Unit unit = decode_utf8(text, i);
    if (unit.code_point < 0 || unit.code_point >= static_cast<int32_t>(kNumCodePoints)) return false;
    const int16_t byte = byte_of[static_cast<size_t>(unit.code_point)];
    if (byte < 0) return false;
    bytes += static_cast<char>(static_cast<unsigned char>(byte));
    i += static_cast<size_t>(unit.length);
  }
  return true;
}

}  // namespace trivium::io
