// The products that may be a row's maximum, for one CPU level; see ops/row_screen.h. Included by
// level_kernels.h.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/matmul.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// Exact sums of products of a group of codes with 16-bit integers, in 32-bit lanes. How a group of x's words
// lies in memory is the level's own: kWordBytes for each column.
inline constexpr int64_t kWordBytes = 2;
#if defined(__AVX512BF16__)
// Codes of 6 bits, decoded in registers. Levels are bytes without sign here, 128 too large, and a word is two
// signed digits to base 256.
inline constexpr int64_t kGroupBytes = kScreenGroup * 6 / 8;
inline constexpr int kLevelOffset = 128;
inline constexpr int kLargestWord = 127 * 256 + 127;
inline constexpr int64_t kMostColumns = int64_t{1} << 20;  // 2^31 / (255 * 128) products of a lane, 16 lanes
struct Words {
  __m512i high, low;
};
using Sums = Words;
inline void pack_words(const int16_t* words, int8_t* to) {
  for (int64_t i = 0; i < kScreenGroup; ++i) {
    const int high = (words[i] + 128) >> 8;
    to[i] = static_cast<int8_t>(high);
    to[kScreenGroup + i] = static_cast<int8_t>(words[i] - 256 * high);
  }
}
TRIVIUM_INLINE Words load_words(const int8_t* p) {
  return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + kScreenGroup)};
}
TRIVIUM_INLINE Sums no_sums() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
struct DecodeTables {
  alignas(64) uint8_t spread[64], shifts[64], levels[64];  // spread: six bytes of eight codes to eight bytes
};
constexpr DecodeTables make_decode_tables() {
  DecodeTables tables{};
  for (int i = 0; i < 64; ++i) {
    tables.spread[i] = static_cast<uint8_t>(i / 8 * 6 + i % 8);
    tables.shifts[i] = static_cast<uint8_t>(i % 8 * 6);
    tables.levels[i] = static_cast<uint8_t>(kScreenLevels.of_code[i] + kLevelOffset);
  }
  return tables;
}
inline constexpr DecodeTables kDecodeTables = make_decode_tables();
struct Decoder {
  __m512i spread = _mm512_load_si512(kDecodeTables.spread);
  __m512i shifts = _mm512_load_si512(kDecodeTables.shifts);
  __m512i levels = _mm512_load_si512(kDecodeTables.levels);
  TRIVIUM_INLINE Sums mac(const uint8_t* codes, Words x, Sums acc) const {
    const __m512i bits = _mm512_maskz_loadu_epi8((uint64_t{1} << kGroupBytes) - 1, codes);
    // vpermb takes the lowest 6 bits of an index, whatever is above them.
    const __m512i code = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(spread, bits));
    const __m512i level = _mm512_permutexvar_epi8(code, levels);
    return {_mm512_dpbusd_epi32(acc.high, level, x.high), _mm512_dpbusd_epi32(acc.low, level, x.low)};
  }
};
TRIVIUM_INLINE int64_t total(Sums s) {
  return int64_t{256} * _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(s.high))) +
         int64_t{256} * _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(s.high, 1))) +
         _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(s.low))) +
         _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(s.low, 1)));
}
#else
// The copy's bytes are the levels.
inline constexpr int64_t kGroupBytes = kScreenGroup;
inline constexpr int kLevelOffset = 0;
inline constexpr int kLargestWord = 32767;
inline constexpr int64_t kMostColumns = std::numeric_limits<int64_t>::max();
inline void pack_words(const int16_t* words, int8_t* to) {
  std::memcpy(to, words, kScreenGroup * kWordBytes);
}
#if defined(__AVX2__)
using Words = const __m256i*;
using Sums = __m256i;
TRIVIUM_INLINE Words load_words(const int8_t* p) { return reinterpret_cast<Words>(p); }
TRIVIUM_INLINE Sums no_sums() { return _mm256_setzero_si256(); }
struct Decoder {
  TRIVIUM_INLINE Sums mac(const uint8_t* codes, Words x, Sums acc) const {
#pragma GCC unroll kUnroll
    for (int i = 0; i < 4; ++i) {
      const auto* from = reinterpret_cast<const __m128i*>(codes) + i;
      const __m256i levels = _mm256_cvtepi8_epi16(_mm_loadu_si128(from));
      acc = _mm256_add_epi32(acc, _mm256_madd_epi16(levels, _mm256_loadu_si256(x + i)));
    }
    return acc;
  }
};
TRIVIUM_INLINE int64_t total(Sums s) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), s);
  int64_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}
#else
using Words = const int8_t*;
using Sums = int64_t;
TRIVIUM_INLINE Words load_words(const int8_t* p) { return p; }
TRIVIUM_INLINE Sums no_sums() { return 0; }
struct Decoder {
  TRIVIUM_INLINE Sums mac(const uint8_t* codes, Words x, Sums acc) const {
    int16_t words[kScreenGroup];
    std::memcpy(words, x, sizeof words);
    int32_t sum = 0;  // at most 64 * 127 * 32767
    for (int64_t i = 0; i < kScreenGroup; ++i) sum += static_cast<int8_t>(codes[i]) * words[i];
    return acc + sum;
  }
};
TRIVIUM_INLINE int64_t total(Sums s) { return s; }
#endif
#endif

inline constexpr int kScreenRows = 8;
inline constexpr double kNothing = -std::numeric_limits<double>::infinity();

// x in 16 bits: x[i] is close to step * word[i].
struct ScreenInput {
  const int8_t* words;  // packed
  int64_t sum;          // of the words
  double step;
  double norm;   // of x
  double error;  // of x - step * words
};

// False where x has no bounds: NaN, infinities, too long for 32-bit sums.
template <class X>
bool quantise(const X* x, int64_t k, int64_t groups, int8_t* words, ScreenInput* input) {
  // A lane adds at most an eighth of the products.
  const int64_t fit = std::numeric_limits<int32_t>::max() / (127 * (groups * kScreenGroup / 8));
  const double limit = fit < kLargestWord ? static_cast<double>(fit) : kLargestWord;
  double largest = 0, square = 0, rest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double value = double{to_float(x[i])};
    if (!(value - value == 0)) return false;
    largest = std::fabs(value) > largest ? std::fabs(value) : largest;
    square += value * value;
  }
  if (limit < 1 || k > kMostColumns) return false;
  const double step = largest / limit, inverse = largest > 0 ? limit / largest : 0;
  int64_t sum = 0;
  for (int64_t g = 0; g < groups; ++g) {
    int16_t group[kScreenGroup] = {};
    for (int64_t i = g * kScreenGroup; i < k && i < (g + 1) * kScreenGroup; ++i) {
      const double value = double{to_float(x[i])}, scaled = value * inverse;
      const auto word = static_cast<int16_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
      group[i - g * kScreenGroup] = word;
      sum += word;
      rest += (value - step * word) * (value - step * word);
    }
    pack_words(group, words + g * kScreenGroup * kWordBytes);
  }
  *input = {words, sum, step, std::sqrt(square) * (1 + 1e-9), std::sqrt(rest) * (1 + 1e-9)};
  return true;
}

// sums[r] = words . levels of row + r
template <int kRows>
[[gnu::noinline]] void screen_tile(const RowScreenView& screen, int64_t row, const ScreenInput& x,
                                   int64_t* sums) {
  const uint8_t* base = screen.codes + row * screen.row_bytes;
  const Decoder decoder;
  Sums acc[kRows];
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r) acc[r] = no_sums();
  const int8_t* words = x.words;
  for (int64_t i = 0; i < screen.row_bytes; i += kGroupBytes) {
    // The rows behind these, in the order they lie in memory, as in DenseRows.
    const uint8_t* next = base + kRows * (screen.row_bytes + i);
#pragma GCC unroll kUnroll
    for (int64_t p = 0; p < kRows * kGroupBytes; p += kCacheLine) __builtin_prefetch(next + p, 0, 2);
    const Words group = load_words(words);
    words += kScreenGroup * kWordBytes;
#pragma GCC unroll kUnroll
    for (int r = 0; r < kRows; ++r) acc[r] = decoder.mac(base + r * screen.row_bytes + i, group, acc[r]);
  }
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r) sums[r] = total(acc[r]) - kLevelOffset * x.sum;
}

// Upper bound of the product of row r with x, rounded up, and in *lower the lower bound.
inline float product_bounds(const RowScreenView& screen, int64_t r, const ScreenInput& x, int64_t k,
                            int64_t sum, double* lower) {
  // Matrix instructions may take subnormal numbers for zero.
  const double tiny = static_cast<double>(k) * 0x1p-125;
  const double error = double{screen.error[r]}, norm = double{screen.norm[r]};
  const double estimate = double{screen.step[r]} * x.step * static_cast<double>(sum);
  const double width = (x.norm + tiny) * (error + tiny) + (x.error + tiny) * norm + tiny;
  const double bound = width * (1 + 1e-9) + std::fabs(estimate) * 1e-12;
  if (!(std::fabs(estimate) + bound < 1e37)) {  // the product itself may overflow
    *lower = kNothing;
    return std::numeric_limits<float>::infinity();
  }
  *lower = estimate - bound;
  return std::nextafter(static_cast<float>(estimate + bound), std::numeric_limits<float>::infinity());
}

// A row of w whose product is at least `lower`.
struct Leader {
  double lower = kNothing;
  int64_t row = 0;
};

// Upper bounds of rows [n0, n1) into y; returns the row of the largest lower bound.
inline Leader bound_rows(const LinearMaximumArgs& a, const ScreenInput& x, int64_t n0, int64_t n1, float* y) {
  Leader best{kNothing, n0};
  int64_t sums[kScreenRows];
  for (int64_t n = n0; n < n1;) {
    const int rows = n1 - n >= kScreenRows ? kScreenRows : 1;
    if (rows == kScreenRows)
      screen_tile<kScreenRows>(a.screen, n, x, sums);
    else
      screen_tile<1>(a.screen, n, x, sums);
    for (int r = 0; r < rows; ++r) {
      double lower;
      y[n + r] = product_bounds(a.screen, n + r, x, a.k, sums[r], &lower);
      if (lower > best.lower) best = {lower, n + r};
    }
    n += rows;
  }
  return best;
}

// What row i's maximum is at least: the best of all tasks' bounds, or that row's product where it is larger,
// as it is but for rounding.
template <class X>
double least_maximum(const LinearMaximumArgs& a, const Leader* leaders, int64_t tasks, int64_t i) {
  Leader best = leaders[i];
  for (int64_t t = 1; t < tasks; ++t)
    if (leaders[t * a.m + i].lower > best.lower) best = leaders[t * a.m + i];
  const DenseRows<X, bf16, false> w{static_cast<const bf16*>(a.w.data), a.k};
  const X* x = static_cast<const X*>(a.x) + i * a.k;
  float product;
  multiply_tile<1, 1, X>(w, best.row, &x, a.k, &product);
  return double{product} > best.lower ? double{product} : best.lower;
}

// False when nothing is gained: x that has no bounds, or more than one row in 16 left to multiply. y is
// undefined then.
template <class X>
bool screened_maximum(const LinearMaximumArgs& a) {
  const int64_t run = task_rows(a.n), tasks = (a.n + run - 1) / run;
  const int64_t groups = a.screen.row_bytes / kGroupBytes, word_bytes = groups * kScreenGroup * kWordBytes;
  const int64_t input_bytes = a.m * static_cast<int64_t>(sizeof(ScreenInput));
  const int64_t leader_bytes = a.m * tasks * static_cast<int64_t>(sizeof(Leader));
  char* memory = static_cast<char*>(second_scratch(a.m * word_bytes + input_bytes + leader_bytes));
  auto* words = reinterpret_cast<int8_t*>(memory);
  auto* inputs = reinterpret_cast<ScreenInput*>(memory + a.m * word_bytes);
  auto* leaders = reinterpret_cast<Leader*>(memory + a.m * word_bytes + input_bytes);  // [tasks, m]
  for (int64_t i = 0; i < a.m; ++i)
    if (!quantise(static_cast<const X*>(a.x) + i * a.k, a.k, groups, words + i * word_bytes, inputs + i))
      return false;
  const auto end_of = [&](int64_t task) { return (task + 1) * run < a.n ? (task + 1) * run : a.n; };
  parallel_for(tasks, [&](int64_t task, int) {
    for (int64_t i = 0; i < a.m; ++i)
      leaders[task * a.m + i] = bound_rows(a, inputs[i], task * run, end_of(task), a.y + i * a.n);
  });
  for (int64_t i = 0; i < a.m; ++i) {
    const double least = least_maximum<X>(a, leaders, tasks, i);
    int64_t left = 0;
    for (int64_t n = 0; n < a.n; ++n) left += double{a.y[i * a.n + n]} >= least;
    if (left * 16 > a.n) return false;
    leaders[i].lower = least;  // row i's own bounds have been read
  }
  parallel_for(tasks, [&](int64_t task, int) {
    const DenseRows<X, bf16, false> w{static_cast<const bf16*>(a.w.data), a.k};
    for (int64_t i = 0; i < a.m; ++i) {
      const X* x = static_cast<const X*>(a.x) + i * a.k;
      float* y = a.y + i * a.n;
      for (int64_t n = task * run; n < end_of(task); ++n) {
        if (double{y[n]} >= leaders[i].lower)
          multiply_tile<1, 1, X>(w, n, &x, a.k, y + n);
        else
          y[n] = -std::numeric_limits<float>::infinity();
      }
    }
  });
  return true;
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
