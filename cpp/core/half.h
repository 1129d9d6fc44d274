// 16-bit storage types and their exact conversions; MXFP4 element and scale decoding (OCP MX v1.0).
// Everything here is forced inline: files built for different CPU levels include it, and a shared
// out-of-line copy could carry instructions of the wrong level. GPU compilers build it for the device too.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TRIVIUM_INLINE __host__ __device__ __forceinline__
#elif defined(__HIP__)
#define TRIVIUM_INLINE __attribute__((host, device, always_inline)) inline
#else
#define TRIVIUM_INLINE [[gnu::always_inline]] inline
#endif

namespace trivium {

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

TRIVIUM_INLINE float to_float(float x) { return x; }

TRIVIUM_INLINE float to_float(bf16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}

TRIVIUM_INLINE float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return __builtin_bit_cast(float, sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Shifted into place the exponent is 112 too small; the multiplication mends it and normalises subnormals.
  const float scaled = __builtin_bit_cast(float, magnitude << 13) * __builtin_bit_cast(float, 0x77800000u);
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, scaled));
}

// Round to nearest even; NaN becomes the quiet NaN 0x7fc0 with its sign.
TRIVIUM_INLINE bf16 to_bf16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16 & 0x8000u) | 0x7fc0u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// Round to nearest even; overflow goes to infinity.
TRIVIUM_INLINE f16 to_f16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above
  if (magnitude < 0x38800000u) {  // below the smallest normal 2^-14: let the adder round at 2^-24
    const float rounded = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, rounded) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

// Nearest float, but with an odd last bit when inexact: a second rounding to 16 bits then equals one rounding
// of the double (Boldo & Melquiond, Emulation of FMA and correctly rounded sums, 2008).
TRIVIUM_INLINE float round_to_odd(double value) {
  const auto single = static_cast<float>(value);
  const auto bits = __builtin_bit_cast(uint32_t, single);
  if (single == value || value != value || (bits & 1)) return single;
  const bool larger = value > 0 ? single > value : single < value;  // in magnitude
  return __builtin_bit_cast(float, larger ? bits - 1 : bits + 1);
}

// Magnitudes of the 8 E2M1 codes; bit 3 of a nibble is the sign.
inline constexpr float kFp4Values[16] = {0.f,  .5f,  1.f,  1.5f,  2.f,  3.f,  4.f,  6.f,
                                         -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};
inline constexpr int kMxBlock = 32;       // weights that share one scale
inline constexpr int kMxBlockBytes = 16;  // byte k holds element 2k (low nibble) and 2k+1 (high nibble)
inline constexpr int kMaxMxScale = 252;   // larger scales overflow bf16; loaders refuse them

// 2^(scale - 127), E8M0; 255 is NaN.
TRIVIUM_INLINE float mx_scale(uint8_t scale) {
  if (scale == 255) return __builtin_bit_cast(float, 0x7fc00000u);
  return scale == 0 ? __builtin_bit_cast(float, 0x00400000u)
                    : __builtin_bit_cast(float, static_cast<uint32_t>(scale) << 23);
}

}  // namespace trivium
