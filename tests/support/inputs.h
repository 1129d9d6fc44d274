// Inputs made from a seed, the same on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace trivium::testing {

class Random {
 public:
  // Another multiplier than the increment below: with that one, seed + 1 would be seed's stream less one
  // draw.
  explicit Random(uint64_t seed) : state_(seed * 0xD1342543DE82EF95ull + 1) {}
  uint64_t next() {  // splitmix64 (Steele, Lea & Flood 2014)
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  int64_t integer(int64_t low, int64_t high) {  // both ends included
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(2 * M_PI * uniform()); }

 private:
  uint64_t state_;
};

// Host tensors of float32.
inline Tensor random_normal(const Shape& shape, uint64_t seed, double scale = 1) {
  Random random(seed);
  Tensor t = Tensor::empty(shape, Dtype::f32);
  for (int64_t i = 0; i < t.numel(); ++i) t.data_as<float>()[i] = static_cast<float>(random.normal() * scale);
  return t;
}

// Small integers: float32 sums of their products are exact, so layout faults cannot hide in a tolerance.
inline Tensor random_integers(const Shape& shape, uint64_t seed, int64_t low = -4, int64_t high = 4) {
  Random random(seed);
  Tensor t = Tensor::empty(shape, Dtype::f32);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data_as<float>()[i] = static_cast<float>(random.integer(low, high));
  return t;
}

inline Tensor random_bytes(const Shape& shape, uint64_t seed, int64_t low = 0, int64_t high = 255) {
  Random random(seed);
  Tensor t = Tensor::empty(shape, Dtype::u8);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data_as<uint8_t>()[i] = static_cast<uint8_t>(random.integer(low, high));
  return t;
}

}  // namespace trivium::testing
