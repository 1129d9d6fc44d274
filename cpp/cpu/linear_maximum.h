// The products that may be a row's maximum, for one CPU level; see ops/row_screen.h. Included by
// level_kernels.h.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/matmul.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// Exact sums of products of 8-bit and 16-bit integers: kWords of each a step, in 32-bit lanes.
#if defined(__AVX512BF16__)
inline constexpr int64_t kWords = 32;
using Words = __m512i;
using Sums = __m512i;
TRIVIUM_INLINE Words load_words(const int16_t* p) { return _mm512_loadu_si512(p); }
TRIVIUM_INLINE Words widen(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TRIVIUM_INLINE Sums no_sums() { return _mm512_setzero_si512(); }
TRIVIUM_INLINE Sums mac(Words a, Words b, Sums acc) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)); }
TRIVIUM_INLINE int64_t total(Sums s) {
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, s);
  int64_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}
#elif defined(__AVX2__)
inline constexpr int64_t kWords = 16;
using Words = __m256i;
using Sums = __m256i;
TRIVIUM_INLINE Words load_words(const int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
TRIVIUM_INLINE Words widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TRIVIUM_INLINE Sums no_sums() { return _mm256_setzero_si256(); }
TRIVIUM_INLINE Sums mac(Words a, Words b, Sums acc) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
TRIVIUM_INLINE int64_t total(Sums s) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), s);
  int64_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}
#else
inline constexpr int64_t kWords = 1;
using Words = int32_t;
using Sums = int64_t;
TRIVIUM_INLINE Words load_words(const int16_t* p) { return *p; }
TRIVIUM_INLINE Words widen(const int8_t* p) { return *p; }
TRIVIUM_INLINE Sums no_sums() { return 0; }
TRIVIUM_INLINE Sums mac(Words a, Words b, Sums acc) { return acc + a * b; }
TRIVIUM_INLINE int64_t total(Sums s) { return s; }
#endif

inline constexpr int kScreenRows = 8;
inline constexpr double kNothing = -std::numeric_limits<double>::infinity();

// x in 16 bits: x[i] is close to step * words[i].
struct ScreenInput {
  const int16_t* words;
  double step;
  double norm;   // of x
  double error;  // of x - step * words
};

// False where x has no bounds: NaN, infinities, too long for 32-bit sums.
template <class X>
bool quantise(const X* x, int64_t k, int64_t stride, int16_t* words, ScreenInput* input) {
  // A lane adds at most stride / 8 products.
  const int64_t fit = std::numeric_limits<int32_t>::max() / (127 * (stride / 8));
  const double limit = fit < 32767 ? static_cast<double>(fit) : 32767;
  double largest = 0, square = 0, rest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double value = double{to_float(x[i])};
    if (!(value - value == 0)) return false;
    largest = std::fabs(value) > largest ? std::fabs(value) : largest;
    square += value * value;
  }
  if (limit < 1) return false;
  const double step = largest / limit, inverse = largest > 0 ? limit / largest : 0;
  for (int64_t i = 0; i < k; ++i) {
    const double value = double{to_float(x[i])}, scaled = value * inverse;
    words[i] = static_cast<int16_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
    rest += (value - step * words[i]) * (value - step * words[i]);
  }
  for (int64_t i = k; i < stride; ++i) words[i] = 0;
  *input = {words, step, std::sqrt(square) * (1 + 1e-9), std::sqrt(rest) * (1 + 1e-9)};
  return true;
}

// sums[r] = words . rows[row + r]
template <int kRows>
[[gnu::noinline]] void screen_tile(const RowScreenView& screen, int64_t row, const int16_t* words,
                                   int64_t* sums) {
  const int8_t* base = screen.rows + row * screen.stride;
  Sums acc[kRows];
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r) acc[r] = no_sums();
  for (int64_t i = 0; i < screen.stride; i += kWords) {
    // The rows behind these, in the order they lie in memory, as in DenseRows.
    const int8_t* next = base + kRows * (screen.stride + i);
#pragma GCC unroll kUnroll
    for (int64_t p = 0; p < kRows * kWords; p += kCacheLine) __builtin_prefetch(next + p, 0, 2);
    const Words x = load_words(words + i);
#pragma GCC unroll kUnroll
    for (int r = 0; r < kRows; ++r) acc[r] = mac(widen(base + r * screen.stride + i), x, acc[r]);
  }
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r) sums[r] = total(acc[r]);
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

// Upper bounds of rows [n0, n1) into y; returns the largest lower bound.
inline double bound_rows(const LinearMaximumArgs& a, const ScreenInput& x, int64_t n0, int64_t n1, float* y) {
  double best = kNothing;
  int64_t sums[kScreenRows];
  for (int64_t n = n0; n < n1;) {
    const int rows = n1 - n >= kScreenRows ? kScreenRows : 1;
    if (rows == kScreenRows)
      screen_tile<kScreenRows>(a.screen, n, x.words, sums);
    else
      screen_tile<1>(a.screen, n, x.words, sums);
    for (int r = 0; r < rows; ++r) {
      double lower;
      y[n + r] = product_bounds(a.screen, n + r, x, a.k, sums[r], &lower);
      best = lower > best ? lower : best;
    }
    n += rows;
  }
  return best;
}

// False when nothing is gained: x that has no bounds, or more than one row in 16 left to multiply. y is
// undefined then.
template <class X>
bool screened_maximum(const LinearMaximumArgs& a) {
  const int64_t run = task_rows(a.n), tasks = (a.n + run - 1) / run, stride = a.screen.stride;
  const int64_t input_bytes = a.m * static_cast<int64_t>(sizeof(ScreenInput));
  const int64_t bound_bytes = a.m * tasks * static_cast<int64_t>(sizeof(double));
  const int64_t word_bytes = a.m * stride * static_cast<int64_t>(sizeof(int16_t));
  char* memory = static_cast<char*>(second_scratch(input_bytes + bound_bytes + word_bytes + 2 * kCacheLine));
  auto* inputs = reinterpret_cast<ScreenInput*>(memory);
  auto* lower = reinterpret_cast<double*>(memory + input_bytes);  // [tasks, m]
  auto* words = reinterpret_cast<int16_t*>(memory + input_bytes + bound_bytes);
  for (int64_t i = 0; i < a.m; ++i)
    if (!quantise(static_cast<const X*>(a.x) + i * a.k, a.k, stride, words + i * stride, inputs + i))
      return false;
  const auto end_of = [&](int64_t task) { return (task + 1) * run < a.n ? (task + 1) * run : a.n; };
  parallel_for(tasks, [&](int64_t task, int) {
    for (int64_t i = 0; i < a.m; ++i)
      lower[task * a.m + i] = bound_rows(a, inputs[i], task * run, end_of(task), a.y + i * a.n);
  });
  for (int64_t i = 0; i < a.m; ++i) {
    double best = kNothing;
    for (int64_t t = 0; t < tasks; ++t) best = lower[t * a.m + i] > best ? lower[t * a.m + i] : best;
    int64_t left = 0;
    for (int64_t n = 0; n < a.n; ++n) left += double{a.y[i * a.n + n]} >= best;
    if (left * 16 > a.n) return false;
    lower[i] = best;  // the largest of all tasks; row i's own bounds have been read
  }
  parallel_for(tasks, [&](int64_t task, int) {
    const DenseRows<X, bf16, false> w{static_cast<const bf16*>(a.w.data), a.k};
    for (int64_t i = 0; i < a.m; ++i) {
      const X* x = static_cast<const X*>(a.x) + i * a.k;
      float* y = a.y + i * a.n;
      for (int64_t n = task * run; n < end_of(task); ++n) {
        if (double{y[n]} >= lower[i])
          multiply_tile<1, 1, X>(w, n, &x, a.k, y + n);
        else
          y[n] = -std::numeric_limits<float>::infinity();
      }
    }
  });
  return true;
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
