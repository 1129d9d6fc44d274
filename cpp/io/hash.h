// Checksums that decide whether two runs used the same files: a 64-bit hash of bytes and CRC-32C. Neither
// resists an attacker. Results are the same on every little-endian machine.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace trivium::io {

// Mixes 8 bytes at a time. Each step is a bijection of the state and of the lane, so two inputs of one length
// that differ in one lane never collide. Chain several pieces by passing the last result as `seed`.
inline uint64_t hash64(std::string_view bytes, uint64_t seed = 0) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio, odd
  const auto mix = [](uint64_t h) {
    h *= kMultiplier;
    return h ^ (h >> 32);
  };
  uint64_t h = mix(seed ^ (bytes.size() + kMultiplier));
  while (!bytes.empty()) {
    uint64_t lane = 0;  // the last lane is padded with zeros; the length above tells paddings apart
    const size_t n = bytes.size() < 8 ? bytes.size() : 8;
    std::memcpy(&lane, bytes.data(), n);
    h = mix(h ^ lane);
    bytes.remove_prefix(n);
  }
  return mix(mix(h));
}

// As hash64, but for gigabytes: eight chains over every eighth lane keep the multiplier busy, where one waits
// for itself. Inputs of one length that differ in one lane never collide here either.
inline uint64_t hash64_bulk(std::string_view bytes) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;
  constexpr size_t kChains = 8, kBlock = kChains * sizeof(uint64_t);
  std::array<uint64_t, kChains> chains{};
  for (size_t i = 0; i < kChains; ++i) chains[i] = (i + 1) * kMultiplier;
  const uint64_t length = bytes.size();
  for (; bytes.size() >= kBlock; bytes.remove_prefix(kBlock)) {
    std::array<uint64_t, kChains> lanes;
    std::memcpy(lanes.data(), bytes.data(), kBlock);
    for (size_t i = 0; i < kChains; ++i) {
      const uint64_t h = (chains[i] ^ lanes[i]) * kMultiplier;
      chains[i] = h ^ (h >> 32);
    }
  }
  return hash64(bytes, hash64({reinterpret_cast<const char*>(chains.data()), kBlock}, length));
}

namespace detail {

constexpr std::array<uint32_t, 256> make_crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}

inline constexpr std::array<uint32_t, 256> kCrc32cTable = make_crc32c_table();

}  // namespace detail

// CRC-32C (Castagnoli, reflected, RFC 3720 appendix B.4). Chain pieces by passing the last result as `crc`.
inline uint32_t crc32c(std::string_view bytes, uint32_t crc = 0) {
  crc = ~crc;
  for (const char c : bytes)
    crc = (crc >> 8) ^ detail::kCrc32cTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

}  // namespace trivium::io
