// Small float32 products for the mLSTM of one CPU level. The right operand is packed in panels: kPanel
// columns of every k lie together, so that a product reads it in order. An element is one accumulator that
// adds its terms in ascending k, whatever the tile: its bits do not depend on how the work is cut.
#pragma once

#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

inline constexpr int kPanel = 2 * kLanes;
// Rows of a product tile: kMlstmRows * 2 accumulators, 2 panel vectors and a broadcast fit in the registers.
inline constexpr int kMlstmRows = kLanes == 16 ? 8 : 4;
inline constexpr int kMlstmUnroll = kLanes > 4 ? 8 : 1;  // as kUnroll of matmul.h

template <int kRows>
struct TileAcc {
  F32 x[kRows][2];
  TRIVIUM_INLINE void clear() {
#pragma GCC unroll kMlstmUnroll
    for (int r = 0; r < kRows; ++r) x[r][0] = x[r][1] = zero();
  }
  // x += a b: a[r * row + k * step] for k < depth, b a panel of depth rows.
  TRIVIUM_INLINE void add_product(const float* a, int64_t row, int64_t step, const float* b, int64_t depth) {
    F32 acc[kRows][2];
#pragma GCC unroll kMlstmUnroll
    for (int r = 0; r < kRows; ++r) acc[r][0] = x[r][0], acc[r][1] = x[r][1];
    for (int64_t k = 0; k < depth; ++k, a += step, b += kPanel) {
      const F32 b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll kMlstmUnroll
      for (int r = 0; r < kRows; ++r) {
        const F32 value = set1(a[r * row]);
        acc[r][0] = fma(value, b0, acc[r][0]);
        acc[r][1] = fma(value, b1, acc[r][1]);
      }
    }
#pragma GCC unroll kMlstmUnroll
    for (int r = 0; r < kRows; ++r) x[r][0] = acc[r][0], x[r][1] = acc[r][1];
  }
  // The same with `a` itself in panels: element (row, k) at a[k / kPanel * panel + row * kPanel + k %
  // kPanel].
  TRIVIUM_INLINE void add_panels(const float* a, int64_t panel, const float* b, int64_t depth) {
    for (int64_t k = 0; k < depth; k += kPanel, a += panel, b += kPanel * kPanel)
      add_product(a, kPanel, 1, b, depth - k < kPanel ? depth - k : kPanel);
  }
  TRIVIUM_INLINE void scale(int r, float by) {
    x[r][0] = mul(x[r][0], set1(by));
    x[r][1] = mul(x[r][1], set1(by));
  }
  TRIVIUM_INLINE void store_row(int r, float* to) const {
    store(to, x[r][0]);
    store(to + kLanes, x[r][1]);
  }
  TRIVIUM_INLINE void load_row(int r, const float* from) {
    x[r][0] = load(from);
    x[r][1] = load(from + kLanes);
  }
};

// Calls fn.operator()<rows>(first) for tiles of kMlstmRows rows, then for single ones.
template <class Fn>
TRIVIUM_INLINE void for_row_tiles(int64_t rows, Fn&& fn) {
  int64_t r = 0;
  for (; r + kMlstmRows <= rows; r += kMlstmRows) fn.template operator()<kMlstmRows>(r);
  for (; r < rows; ++r) fn.template operator()<1>(r);
}

TRIVIUM_INLINE int64_t num_panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
TRIVIUM_INLINE int64_t panel_columns(int64_t columns) { return num_panels(columns) * kPanel; }

// Stores the first n lanes of a vector as T; n >= 1.
TRIVIUM_INLINE void store_as(float* to, F32 x, int n) {
  if (n >= kLanes)
    store(to, x);
  else
    store(to, x, n);
}
TRIVIUM_INLINE void store_as(bf16* to, F32 x, int n) {
  if (n >= kLanes)
    store(to, x);
  else
    store(to, x, n);
}
TRIVIUM_INLINE void store_as(f16* to, F32 x, int n) {
  float values[kLanes];
  store(values, x);
  for (int i = 0; i < n && i < kLanes; ++i) to[i] = to_f16(values[i]);
}

// A row of `columns` elements as float32; the rest up to `padded` is zero.
template <class T>
TRIVIUM_INLINE void copy_row(const T* from, int64_t columns, float* to, int64_t padded) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) store(to + i, load(from + i));
  for (; i < columns; ++i) to[i] = to_float(from[i]);
  for (; i < padded; ++i) to[i] = 0;
}

// Row `row` of a matrix with `rows` rows, from `values` (padded to panels), into panels.
TRIVIUM_INLINE void put_row(const float* values, int64_t columns, int64_t row, int64_t rows, float* panels) {
  for (int64_t p = 0; p < num_panels(columns); ++p) {
    float* to = panels + (p * rows + row) * kPanel;
    store(to, load(values + p * kPanel));
    store(to + kLanes, load(values + p * kPanel + kLanes));
  }
}

// to[c * to_pitch + r] = from[r * pitch + c] for r, c < 4.
typedef float Float4 __attribute__((vector_size(16), aligned(4)));
TRIVIUM_INLINE void transpose_four(const float* from, int64_t pitch, float* to, int64_t to_pitch) {
  const auto row = [&](int64_t r) { return *reinterpret_cast<const Float4*>(from + r * pitch); };
  const Float4 a = row(0), b = row(1), c = row(2), d = row(3);
  const Float4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5),
               ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Float4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5),
               cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Float4 out[4] = {
      __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
      __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) *reinterpret_cast<Float4*>(to + i * to_pitch) = out[i];
}

// panels of the transpose: element (d, row) of [columns, num_rows] for rows [first, last) of `from`, whose
// row stride is `stride`. Four rows at a time, so that stores are not single floats.
TRIVIUM_INLINE void put_transposed(const float* from, int64_t stride, int64_t columns, int64_t first,
                                   int64_t last, float* panels) {
  const auto place = [&](int64_t r) { return panels + r / kPanel * columns * kPanel + r % kPanel; };
  const auto put_one = [&](int64_t r) {
    for (int64_t d = 0; d < columns; ++d) place(r)[d * kPanel] = from[r * stride + d];
  };
  int64_t r = first;
  for (; r < last && (r % 4 != 0 || last - r < 4); ++r) put_one(r);
  for (; r + 4 <= last; r += 4) {
    int64_t d = 0;
    for (; d + 4 <= columns; d += 4)
      transpose_four(from + r * stride + d, stride, place(r) + d * kPanel, kPanel);
    for (; d < columns; ++d)
      for (int64_t i = 0; i < 4; ++i) place(r)[d * kPanel + i] = from[(r + i) * stride + d];
  }
  for (; r < last; ++r) put_one(r);
}

// Row-major [rows, columns] into panels and back; panels [first, last) only.
TRIVIUM_INLINE void to_panels(const float* from, int64_t rows, int64_t columns, int64_t first, int64_t last,
                              float* panels) {
  for (int64_t p = first; p < last; ++p)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = columns - p * kPanel < kPanel ? columns - p * kPanel : kPanel;
      copy_row(from + r * columns + p * kPanel, n, panels + (p * rows + r) * kPanel, kPanel);
    }
}
TRIVIUM_INLINE void from_panels(const float* panels, int64_t rows, int64_t columns, int64_t first,
                                int64_t last, float* to) {
  for (int64_t p = first; p < last; ++p)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = columns - p * kPanel < kPanel ? columns - p * kPanel : kPanel;
      copy_row(panels + (p * rows + r) * kPanel, n, to + r * columns + p * kPanel, n);
    }
}

TRIVIUM_INLINE float dot_floats(const float* a, const float* b, int64_t n) {
  F32 sum = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = fma(load(a + i), load(b + i), sum);
  if (i < n) sum = fma(load(a + i, static_cast<int>(n - i)), load(b + i, static_cast<int>(n - i)), sum);
  return reduce_add(sum);
}

// e^x for x <= 0 that reaches zero at -88 (and for -infinity); a NaN stays one.
TRIVIUM_INLINE F32 exp_decay(F32 x) { return mul(exp(x), min(set1(1.0f), max(zero(), add(x, set1(88.0f))))); }

// Parts of a thread's scratch memory, 64-byte aligned.
class Pieces {
 public:
  explicit Pieces(float* memory) : memory_(memory) {}
  float* take(int64_t floats) {
    float* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += (floats + 15) / 16 * 16;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
