// Vectors of one CPU level. A file that includes this is compiled once per level with TRIVIUM_CPU_NS and the
// level's flags set (cpu/CMakeLists.txt), so nothing here or in such a file may have linkage outside that
// namespace. kLanes differs between levels and so does the rounding of sums; within a level every sum has one
// order, whatever the tile, batch or thread count.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/half.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

#if defined(__AVX512BF16__)

inline constexpr int kLanes = 16;
struct F32 {
  __m512 v;
};
struct B16 {  // 2 * kLanes bf16; lane i of a dot takes elements 2i and 2i + 1
  __m512i v;
};

TRIVIUM_INLINE __mmask16 lane_mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
TRIVIUM_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
TRIVIUM_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
TRIVIUM_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
TRIVIUM_INLINE F32 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(lane_mask(n), p)}; }
TRIVIUM_INLINE F32 from_bf16(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
TRIVIUM_INLINE F32 load(const bf16* p) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TRIVIUM_INLINE F32 load(const bf16* p, int n) { return from_bf16(_mm256_maskz_loadu_epi16(lane_mask(n), p)); }
TRIVIUM_INLINE F32 load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TRIVIUM_INLINE F32 load(const f16* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lane_mask(n), p))};
}
TRIVIUM_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
TRIVIUM_INLINE void store(float* p, F32 x, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), x.v); }
// Integer rounding rather than vcvtneps2bf16, which flushes subnormals: all levels round alike.
TRIVIUM_INLINE __m256i round_bf16(F32 x) {
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}
TRIVIUM_INLINE void store(bf16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(x));
}
TRIVIUM_INLINE void store(bf16* p, F32 x, int n) { _mm256_mask_storeu_epi16(p, lane_mask(n), round_bf16(x)); }
TRIVIUM_INLINE F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
TRIVIUM_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 round(F32 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
TRIVIUM_INLINE F32 scale_by_power(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
TRIVIUM_INLINE float reduce_add(F32 x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

TRIVIUM_INLINE B16 load16(const bf16* p) { return {_mm512_loadu_si512(p)}; }
TRIVIUM_INLINE B16 load16(const bf16* p, int n) {
  return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p)};
}
TRIVIUM_INLINE void store16(bf16* p, B16 x) { _mm512_storeu_si512(p, x.v); }
TRIVIUM_INLINE F32 dot(B16 a, B16 b, F32 acc) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// For every scale the bf16 patterns of the 16 codes, twice: what decode_mx looks up. Magnitudes under 2^-126,
// which dot() flushes, are zero; scale 0 counts as 1; 255 is NaN.
struct alignas(64) MxTable {
  uint16_t value[32];
};
struct MxTables {
  MxTable of_scale[256];
};
constexpr MxTables make_mx_tables() {
  constexpr uint16_t kMagnitudes[8] = {0,      0x3f00, 0x3f80, 0x3fc0,
                                       0x4000, 0x4040, 0x4080, 0x40c0};  // at scale 127
  MxTables tables{};
  for (int scale = 0; scale < 256; ++scale)
    for (int code = 0; code < 32; ++code) {
      int bits = kMagnitudes[code % 8];
      if (bits != 0) bits += ((scale < 1 ? 1 : scale) - 127) * 128;
      if (bits > 0x7f80) bits = 0x7f80;
      if (scale == 255) bits = 0x7fc0;
      tables.of_scale[scale].value[code] = static_cast<uint16_t>(bits | (code % 16 >= 8 ? 0x8000 : 0));
    }
  return tables;
}
inline constexpr MxTables kMxTables = make_mx_tables();

// 32 MXFP4 values as bf16.
TRIVIUM_INLINE B16 decode_mx(const uint8_t* block, uint8_t scale) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
  // Word 2k must hold the low nibble and word 2k+1 the high one; vpermw reads 5 bits, and the table repeats
  // after 16 entries, so the high nibble's lowest bit may stay in the even words.
  const __m512i index = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
  return {_mm512_permutexvar_epi16(index, _mm512_load_si512(kMxTables.of_scale[scale].value))};
}

#elif defined(__AVX2__)

inline constexpr int kLanes = 8;
struct F32 {
  __m256 v;
};
struct B16 {
  __m256i v;
};

TRIVIUM_INLINE __m256i lane_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n of `count` 16-bit elements, the rest zero, without reading past the n-th.
template <int count>
TRIVIUM_INLINE void copy_part(uint16_t (&to)[count], const void* from, int n) {
  for (int i = 0; i < count; ++i) to[i] = 0;
  std::memcpy(to, from, static_cast<size_t>(n) * 2);
}
TRIVIUM_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
TRIVIUM_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }
TRIVIUM_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
TRIVIUM_INLINE F32 load(const float* p, int n) { return {_mm256_maskload_ps(p, lane_mask(n))}; }
TRIVIUM_INLINE F32 from_bf16(__m128i h) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
TRIVIUM_INLINE F32 load(const bf16* p) {
  return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TRIVIUM_INLINE F32 load(const bf16* p, int n) {
  uint16_t part[8];
  copy_part(part, p, n);
  return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part)));
}
TRIVIUM_INLINE F32 load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
TRIVIUM_INLINE F32 load(const f16* p, int n) {
  uint16_t part[8];
  copy_part(part, p, n);
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(part)))};
}
TRIVIUM_INLINE void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
TRIVIUM_INLINE void store(float* p, F32 x, int n) { _mm256_maskstore_ps(p, lane_mask(n), x.v); }
TRIVIUM_INLINE __m128i round_bf16(F32 x) {
  const __m256i u = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
TRIVIUM_INLINE void store(bf16* p, F32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_bf16(x)); }
TRIVIUM_INLINE void store(bf16* p, F32 x, int n) {
  uint16_t part[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(part), round_bf16(x));
  std::memcpy(p, part, static_cast<size_t>(n) * 2);
}
TRIVIUM_INLINE F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
TRIVIUM_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
TRIVIUM_INLINE F32 round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
TRIVIUM_INLINE F32 scale_by_power(F32 a, F32 n) {
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(e))};
}
TRIVIUM_INLINE float reduce_add(F32 x) {
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

TRIVIUM_INLINE B16 load16(const bf16* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
TRIVIUM_INLINE B16 load16(const bf16* p, int n) {
  uint16_t part[16];
  copy_part(part, p, n);
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(part))};
}
TRIVIUM_INLINE void store16(bf16* p, B16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
TRIVIUM_INLINE F32 dot(B16 a, B16 b, F32 acc) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256 a0 = _mm256_castsi256_ps(_mm256_slli_epi32(a.v, 16)),
               a1 = _mm256_castsi256_ps(_mm256_and_si256(a.v, high));
  const __m256 b0 = _mm256_castsi256_ps(_mm256_slli_epi32(b.v, 16)),
               b1 = _mm256_castsi256_ps(_mm256_and_si256(b.v, high));
  return {_mm256_fmadd_ps(a1, b1, _mm256_fmadd_ps(a0, b0, acc.v))};
}

#else

// Plain C++ on the compiler's generic vectors: the reference level, and what runs on any CPU.
inline constexpr int kLanes = 4;
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
struct F32 {
  Lanes v;
};
struct B16 {  // widened on loading: elements 2i and 2i + 1
  Lanes even, odd;
};

TRIVIUM_INLINE F32 zero() { return {Lanes{}}; }
TRIVIUM_INLINE F32 set1(float x) { return {Lanes{x, x, x, x}}; }
template <class T>
TRIVIUM_INLINE F32 load(const T* p) {
  return {Lanes{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
template <class T>
TRIVIUM_INLINE F32 load(const T* p, int n) {
  F32 r{};
  for (int i = 0; i < n; ++i) r.v[i] = to_float(p[i]);
  return r;
}
TRIVIUM_INLINE void store(float* p, F32 x, int n = kLanes) {
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}
TRIVIUM_INLINE void store(bf16* p, F32 x, int n = kLanes) {
  for (int i = 0; i < n; ++i) p[i] = to_bf16(x.v[i]);
}
TRIVIUM_INLINE F32 add(F32 a, F32 b) { return {a.v + b.v}; }
TRIVIUM_INLINE F32 sub(F32 a, F32 b) { return {a.v - b.v}; }
TRIVIUM_INLINE F32 mul(F32 a, F32 b) { return {a.v * b.v}; }
TRIVIUM_INLINE F32 div(F32 a, F32 b) { return {a.v / b.v}; }
TRIVIUM_INLINE F32 fma(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
TRIVIUM_INLINE F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
TRIVIUM_INLINE F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
TRIVIUM_INLINE F32 round(F32 a) {  // |a| < 2^22: adding 1.5 * 2^23 leaves no fraction bits
  const Lanes shifted = a.v + 0x1.8p23f;
  return {shifted - 0x1.8p23f};
}
TRIVIUM_INLINE F32 scale_by_power(F32 a, F32 n) {  // a NaN stays one whatever the power is
  const Lanes power = n.v == n.v ? n.v : Lanes{};
  const IntLanes bits = (__builtin_convertvector(power, IntLanes) + 127) << 23;
  return {a.v * reinterpret_cast<Lanes>(bits)};
}
TRIVIUM_INLINE float reduce_add(F32 x) { return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]); }
TRIVIUM_INLINE B16 load16(const bf16* p) {
  return {Lanes{to_float(p[0]), to_float(p[2]), to_float(p[4]), to_float(p[6])},
          Lanes{to_float(p[1]), to_float(p[3]), to_float(p[5]), to_float(p[7])}};
}
TRIVIUM_INLINE B16 load16(const bf16* p, int n) {
  bf16 part[2 * kLanes] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load16(part);
}
TRIVIUM_INLINE F32 dot(B16 a, B16 b, F32 acc) { return {(acc.v + a.even * b.even) + a.odd * b.odd}; }

#endif

// e^x to about 2 ulp: x = n ln2 + r, degree-6 polynomial on |r| <= ln2/2. Arguments are clamped to
// [-87.3, 88.3], so the result is a normal number. x86 min and max return their second operand on NaN: the
// data stands second so that a NaN stays one.
TRIVIUM_INLINE F32 exp(F32 x) {
  x = min(set1(88.3f), max(set1(-87.3f), x));
  const F32 n = round(mul(x, set1(1.44269504f)));
  const F32 r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  F32 p = set1(1.0f / 720);
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return scale_by_power(p, n);
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
