// Philox 4x32-10, a counter-based generator (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As
// Easy as 1, 2, 3; SC 2011). The same (key, counter) gives the same bits on every backend.
#pragma once

#include <compare>
#include <cstdint>

#include "core/half.h"

namespace trivium {

struct PhiloxBlock {
  uint32_t x[4];
  friend auto operator<=>(const PhiloxBlock&, const PhiloxBlock&) = default;
};

TRIVIUM_INLINE PhiloxBlock philox(uint64_t key, uint64_t counter_low, uint64_t counter_high = 0) {
  uint32_t c[4] = {static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                   static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0,
                   n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// Uniform in [0, 1) with 24 bits, from the first word of the block.
TRIVIUM_INLINE float philox_uniform(uint64_t key, uint64_t counter) {
  return static_cast<float>(philox(key, counter).x[0] >> 8) * 0x1p-24f;
}

}  // namespace trivium
