// A total order on candidates as integers: ascending keys are descending values, and ascending indices among
// equal ones. A NaN comes before everything, so that it is noticed instead of falling off the end of a
// choice.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr uint64_t kNanKey = 0;  // of a NaN at index 0; no number's

GPU_DEVICE uint64_t rank_key(float value, uint32_t index) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value + 0.0f);  // -0 becomes 0
  uint32_t descending = bits >> 31 ? bits : ~bits & 0x7fffffffu;
  if (value != value) descending = 0;
  return static_cast<uint64_t>(descending) << 32 | index;
}

// The value and the index of a key; not for a NaN's.
GPU_DEVICE float value_of_key(uint64_t key) {
  const uint32_t descending = static_cast<uint32_t>(key >> 32);
  return __builtin_bit_cast(float, descending >> 31 ? descending : ~descending & 0x7fffffffu);
}
GPU_DEVICE uint32_t index_of_key(uint64_t key) { return static_cast<uint32_t>(key); }

}  // namespace trivium::TRIVIUM_GPU_NS
