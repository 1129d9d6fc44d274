// y[m, n] = sum_k x[m, k] w[n, k] for one CPU level. Included by level_kernels.h.
//
// One output element is always one accumulator vector: lane i sums its elements in ascending k, then the
// lanes are added in reduce_add's order. Tiles only decide which elements are computed side by side, so an
// element's bits do not depend on how many rows are multiplied together or how the work is cut.
#pragma once

#include "core/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "ops/args.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

inline constexpr int kTileRows = 4;    // weight rows of a tile
inline constexpr int kTileCols = 6;    // x rows of a tile: 24 accumulators, 4 weights, 1 x in 32 registers
inline constexpr int kStreamRows = 8;  // weight rows of a tile with one x row: enough chains to hide latency
inline constexpr int64_t kTaskRows = 32;  // weight rows of a task
inline constexpr int64_t kBlockBytes = 384
                                       << 10;  // x rows kept in the second-level cache while weights pass by

// How the vectors of one product step look: bf16 pairs, or float32.
template <class X>
struct Step;

template <>
struct Step<bf16> {
  using Vec = B16;
  static constexpr int kWidth = 2 * kLanes;
  TRIVIUM_INLINE static B16 load_x(const bf16* p) { return load16(p); }
  TRIVIUM_INLINE static B16 load_x(const bf16* p, int n) { return load16(p, n); }
  TRIVIUM_INLINE static F32 mac(B16 w, B16 x, F32 acc) { return dot(w, x, acc); }
};

template <>
struct Step<float> {
  using Vec = F32;
  static constexpr int kWidth = kLanes;
  TRIVIUM_INLINE static F32 load_x(const float* p) { return load(p); }
  TRIVIUM_INLINE static F32 load_x(const float* p, int n) { return load(p, n); }
  TRIVIUM_INLINE static F32 mac(F32 w, F32 x, F32 acc) { return fma(w, x, acc); }
};

// Weight rows in memory as T, read as X's vectors.
template <class X, class T>
struct DenseRows {
  const T* base;
  int64_t stride;
  TRIVIUM_INLINE auto at(int64_t row, int64_t k) const {
    if constexpr (std::is_same_v<X, bf16>)
      return load16(base + row * stride + k);
    else
      return load(base + row * stride + k);
  }
  TRIVIUM_INLINE auto at(int64_t row, int64_t k, int n) const {
    if constexpr (std::is_same_v<X, bf16>)
      return load16(base + row * stride + k, n);
    else
      return load(base + row * stride + k, n);
  }
};

#if defined(__AVX512BF16__)
// MXFP4 rows decoded in registers: what a product with few x rows wants, since it is bound by memory.
struct MxRows {
  const uint8_t* blocks;
  const uint8_t* scales;
  int64_t row_blocks;
  TRIVIUM_INLINE B16 at(int64_t row, int64_t k) const {
    const int64_t block = row * row_blocks + k / kMxBlock;
    return decode_mx(blocks + block * kMxBlockBytes, scales[block]);
  }
  TRIVIUM_INLINE B16 at(int64_t row, int64_t k, int) const {
    return at(row, k);
  }  // k is a multiple of 32: no tail
};
#endif

// out[r][c] = row (row0 + r) of w times x[c].
template <int kRows, int kCols, class X, class Rows>
TRIVIUM_INLINE void multiply_tile(const Rows& w, int64_t row0, const X* const* x, int64_t k,
                                  float (&out)[kRows][kCols]) {
  using S = Step<X>;
  F32 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = zero();
  int64_t i = 0;
  for (; i + S::kWidth <= k; i += S::kWidth) {
    typename S::Vec wv[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) wv[r] = w.at(row0 + r, i);
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const auto xv = S::load_x(x[c] + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[r][c] = S::mac(wv[r], xv, acc[r][c]);
    }
  }
  if (const int tail = static_cast<int>(k - i); tail > 0) {
    for (int r = 0; r < kRows; ++r) {
      const auto wv = w.at(row0 + r, i, tail);
      for (int c = 0; c < kCols; ++c) acc[r][c] = S::mac(wv, S::load_x(x[c] + i, tail), acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) out[r][c] = reduce_add(acc[r][c]);
}

// All x rows [c0, c1) against kRows weight rows at `row` (of `w`) that are output rows n0, n0 + 1, ...
template <int kRows, class X, class Rows, class RowOf, class Sink>
TRIVIUM_INLINE void multiply_columns(const Rows& w, int64_t row, int64_t n0, const RowOf& x_row, int64_t c0,
                                     int64_t c1, int64_t k, Sink& sink) {
  const X* x[kTileCols];
  const auto run = [&]<int kCols>(int64_t c) __attribute__((always_inline)) {
    for (int i = 0; i < kCols; ++i) x[i] = x_row(c + i);
    float out[kRows][kCols];
    multiply_tile<kRows, kCols, X>(w, row, x, k, out);
    for (int i = 0; i < kCols; ++i) {
      float column[kRows];
      for (int r = 0; r < kRows; ++r) column[r] = out[r][i];
      sink.template write<kRows>(n0, c + i, column);
    }
  };
  int64_t c = c0;
  for (; c + kTileCols <= c1; c += kTileCols) run.template operator()<kTileCols>(c);
  switch (c1 - c) {
    case 5:
      return run.template operator()<5>(c);
    case 4:
      return run.template operator()<4>(c);
    case 3:
      return run.template operator()<3>(c);
    case 2:
      return run.template operator()<2>(c);
    case 1:
      return run.template operator()<1>(c);
    default:
      return;
  }
}

// Converts weight rows [row, row + count) to X in scratch memory of this thread: [count, k].
template <class X>
const X* decode_rows(const WeightView& w, int64_t row, int64_t count, int64_t k) {
  X* panel = static_cast<X*>(thread_scratch(kTileRows * (k + 2 * kLanes) * static_cast<int64_t>(sizeof(X))));
  if (w.format == WeightFormat::mxfp4) {
    const int64_t row_blocks = k / kMxBlock;
    for (int64_t b = row * row_blocks; b < (row + count) * row_blocks; ++b) {
      X* to = panel + (b - row * row_blocks) * kMxBlock;
      const uint8_t* block = static_cast<const uint8_t*>(w.data) + b * kMxBlockBytes;
#if defined(__AVX512BF16__)
      if constexpr (std::is_same_v<X, bf16>) {
        store16(to, decode_mx(block, w.scales[b]));
        continue;
      }
#endif
      const float scale = mx_scale(w.scales[b]);
      for (int i = 0; i < kMxBlockBytes; ++i) {
        const float low = kFp4Values[block[i] & 15] * scale, high = kFp4Values[block[i] >> 4] * scale;
        if constexpr (std::is_same_v<X, bf16>)
          to[2 * i] = to_bf16(low), to[2 * i + 1] = to_bf16(high);
        else
          to[2 * i] = low, to[2 * i + 1] = high;
      }
    }
    return panel;
  }
  const auto convert = [&](const auto* from) {
    for (int64_t i = 0; i < count * k; ++i) {
      const float value = to_float(from[row * k + i]);
      if constexpr (std::is_same_v<X, bf16>)
        panel[i] = to_bf16(value);
      else
        panel[i] = value;
    }
  };
  if (w.format == WeightFormat::f32)
    convert(static_cast<const float*>(w.data));
  else if (w.format == WeightFormat::f16)
    convert(static_cast<const f16*>(w.data));
  else
    convert(static_cast<const bf16*>(w.data));
  return panel;
}

// Weight rows [row_base + n0, row_base + n1) of w [.., k] against `columns` x rows; sink gets output rows
// n0... Tiles read the stored weights directly where a step can; other formats go through decode_rows.
template <class X, class RowOf, class Sink>
void multiply(const WeightView& w, int64_t row_base, int64_t n0, int64_t n1, const RowOf& x_row,
              int64_t columns, int64_t k, Sink& sink) {
  const int64_t fit = kBlockBytes / (k * static_cast<int64_t>(sizeof(X)) + 1) / kTileCols * kTileCols;
  const int64_t block = fit > kTileCols ? fit : kTileCols;
  const auto rows_of = [&](const auto& rows, int64_t offset, int64_t c0, int64_t c1, int64_t begin,
                           int64_t end) {
    int64_t n = begin;
    if (c1 - c0 == 1)
      for (; n + kStreamRows <= end; n += kStreamRows)
        multiply_columns<kStreamRows, X>(rows, offset + n, n, x_row, c0, c1, k, sink);
    for (; n + kTileRows <= end; n += kTileRows)
      multiply_columns<kTileRows, X>(rows, offset + n, n, x_row, c0, c1, k, sink);
    for (; n + 2 <= end; n += 2) multiply_columns<2, X>(rows, offset + n, n, x_row, c0, c1, k, sink);
    for (; n < end; ++n) multiply_columns<1, X>(rows, offset + n, n, x_row, c0, c1, k, sink);
  };
  for (int64_t c0 = 0; c0 < columns; c0 += block) {
    const int64_t c1 = c0 + block < columns ? c0 + block : columns;
    if (w.format == WeightFormat::bf16) {
      rows_of(DenseRows<X, bf16>{static_cast<const bf16*>(w.data), k}, row_base, c0, c1, n0, n1);
      continue;
    }
    if constexpr (std::is_same_v<X, float>) {
      if (w.format == WeightFormat::f32) {
        rows_of(DenseRows<X, float>{static_cast<const float*>(w.data), k}, row_base, c0, c1, n0, n1);
        continue;
      }
    }
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<X, bf16>) {
      if (w.format == WeightFormat::mxfp4 && columns <= kTileCols) {
        rows_of(MxRows{static_cast<const uint8_t*>(w.data), w.scales, k / kMxBlock}, row_base, c0, c1, n0,
                n1);
        continue;
      }
    }
#endif
    for (int64_t n = n0; n < n1; n += kTileRows) {
      const int64_t end = n + kTileRows < n1 ? n + kTileRows : n1;
      const X* panel = decode_rows<X>(w, row_base + n, end - n, k);
      rows_of(DenseRows<X, X>{panel, k}, -n, c0, c1, n, end);
    }
  }
}

TRIVIUM_INLINE float vector_at(const VectorView& v, int64_t i) {
  if (!v.data) return 0.0f;
  switch (v.dtype) {
    case Dtype::bf16:
      return to_float(static_cast<const bf16*>(v.data)[i]);
    case Dtype::f16:
      return to_float(static_cast<const f16*>(v.data)[i]);
    default:
      return static_cast<const float*>(v.data)[i];
  }
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
