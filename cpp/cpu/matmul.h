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
// Tiles are unrolled so that accumulators stay in registers; the scalar level's would not fit in any case,
// and a sanitizer's checks on unrolled loops take gcc minutes to compile.
inline constexpr int kUnroll = kLanes > 4 ? 8 : 1;
inline constexpr int kCacheLine = 64;
// x rows kept in the second-level cache while weights pass by
inline constexpr int64_t kBlockBytes = 384 << 10;

// Weight rows of a task: long runs, since a run's first rows are not fetched ahead, yet several for every
// thread.
inline int64_t task_rows(int64_t rows) {
  const int64_t share = rows / (4 * num_threads()) / kStreamRows * kStreamRows;
  return share < kStreamRows ? kStreamRows : share > 256 ? 256 : share;
}

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

// Weight rows as T, read as X's vectors. kStream: they come from main memory (not from a panel in cache).
template <class X, class T, bool kStream = true>
struct DenseRows {
  const T* base;
  int64_t stride;
  TRIVIUM_INLINE auto at(int64_t row, int64_t k) const {
    if constexpr (std::is_same_v<X, bf16>)
      return load16(base + row * stride + k);
    else
      return load(base + row * stride + k);
  }
  // While rows [0, rows) are multiplied at k, fetches as much of the rows behind them. Those follow in
  // memory, so this reads it in order; the rows of a tile alone would be as many streams that each start anew
  // every tile.
  TRIVIUM_INLINE void fetch_next(int rows, int64_t k) const {
    if constexpr (kStream) {
      const auto* next = reinterpret_cast<const char*>(base + rows * stride + k * rows);
#pragma GCC unroll kUnroll
      for (int i = 0; i < rows * Step<X>::kWidth * static_cast<int>(sizeof(T)); i += kCacheLine)
        __builtin_prefetch(next + i, 0, 2);
    }
  }
  TRIVIUM_INLINE DenseRows from(int64_t row) const { return {base + row * stride, stride}; }
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
  // k is a multiple of 32, so half of it is the block's byte.
  TRIVIUM_INLINE B16 at(int64_t row, int64_t k) const {
    const uint8_t* block = blocks + row * row_blocks * kMxBlockBytes + (k >> 1);
    return decode_mx(block, scales[row * row_blocks + (k >> 5)]);
  }
  TRIVIUM_INLINE B16 at(int64_t row, int64_t k, int) const { return at(row, k); }  // no tail
  TRIVIUM_INLINE void fetch_next(int rows, int64_t k) const {
    const uint8_t* next = blocks + (rows * row_blocks * kMxBlock + k * rows) / 2;
#pragma GCC unroll kUnroll
    for (int i = 0; i < rows * kMxBlockBytes; i += kCacheLine) __builtin_prefetch(next + i, 0, 2);
    __builtin_prefetch(scales + rows * row_blocks + (k >> 5) * rows, 0, 2);
  }
  TRIVIUM_INLINE MxRows from(int64_t row) const {
    return {blocks + row * row_blocks * kMxBlockBytes, scales + row * row_blocks, row_blocks};
  }
};
#endif

// out[r * kCols + c] = row (row0 + r) of w times x[c]. Out of line: one copy of each tile serves every op.
template <int kRows, int kCols, class X, class Rows>
[[gnu::noinline]] void multiply_tile(const Rows& all, int64_t row0, const X* const* x, int64_t k,
                                     float* out) {
  using S = Step<X>;
  const Rows w = all.from(row0);
  F32 acc[kRows][kCols];
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll kUnroll
    for (int c = 0; c < kCols; ++c) acc[r][c] = zero();
  int64_t i = 0;
  for (; i + S::kWidth <= k; i += S::kWidth) {
    typename S::Vec wv[kRows];
    if constexpr (kCols < kTileCols) w.fetch_next(kRows, i);  // full tiles are bound by arithmetic
#pragma GCC unroll kUnroll
    for (int r = 0; r < kRows; ++r) wv[r] = w.at(r, i);
#pragma GCC unroll kUnroll
    for (int c = 0; c < kCols; ++c) {
      const auto xv = S::load_x(x[c] + i);
#pragma GCC unroll kUnroll
      for (int r = 0; r < kRows; ++r) acc[r][c] = S::mac(wv[r], xv, acc[r][c]);
    }
  }
  if (const int tail = static_cast<int>(k - i); tail > 0) {
#pragma GCC unroll kUnroll
    for (int r = 0; r < kRows; ++r) {
      const auto wv = w.at(r, i, tail);
#pragma GCC unroll kUnroll
      for (int c = 0; c < kCols; ++c) acc[r][c] = S::mac(wv, S::load_x(x[c] + i, tail), acc[r][c]);
    }
  }
#pragma GCC unroll kUnroll
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll kUnroll
    for (int c = 0; c < kCols; ++c) out[r * kCols + c] = reduce_add(acc[r][c]);
}

// The x rows of a product: row c is base + index[c] * stride, or base + c * stride without an index.
template <class X>
struct Columns {
  const X* base;
  int64_t stride;
  const int32_t* index;
  int64_t count;
  TRIVIUM_INLINE const X* row(int64_t c) const { return base + (index ? index[c] : c) * stride; }
};

// Receives a finished tile: out[r * cols + c] is output row n0 + r of x row c0 + c.
struct TileSink {
  void (*write)(void* context, int64_t n0, int rows, int64_t c0, int cols, const float* out);
  void* context;
};

// x rows [c0, c1) against kRows weight rows at `row` of `w`, which are output rows n0, n0 + 1, ...
template <int kRows, class X, class Rows>
void multiply_columns(const Rows& w, int64_t row, int64_t n0, const Columns<X>& x, int64_t c0, int64_t c1,
                      int64_t k, const TileSink& sink) {
  using Tile = void (*)(const Rows&, int64_t, const X* const*, int64_t, float*);
  static constexpr Tile kTiles[] = {multiply_tile<kRows, 1, X, Rows>, multiply_tile<kRows, 2, X, Rows>,
                                    multiply_tile<kRows, 3, X, Rows>, multiply_tile<kRows, 4, X, Rows>,
                                    multiply_tile<kRows, 5, X, Rows>, multiply_tile<kRows, 6, X, Rows>};
  const X* rows[kTileCols];
  float out[kRows * kTileCols];
  for (int64_t c = c0; c < c1; c += kTileCols) {
    const int cols = c1 - c < kTileCols ? static_cast<int>(c1 - c) : kTileCols;
    for (int i = 0; i < cols; ++i) rows[i] = x.row(c + i);
    kTiles[cols - 1](w, row, rows, k, out);
    sink.write(sink.context, n0, kRows, c, cols, out);
  }
}

// The same for one weight row or one x row at a time: tails, and products with a single x row.
template <int kRows, class X, class Rows>
void multiply_single(const Rows& w, int64_t row, int64_t n0, const Columns<X>& x, int64_t c0, int64_t c1,
                     int64_t k, const TileSink& sink) {
  float out[kRows];
  for (int64_t c = c0; c < c1; ++c) {
    const X* column = x.row(c);
    multiply_tile<kRows, 1, X, Rows>(w, row, &column, k, out);
    sink.write(sink.context, n0, kRows, c, 1, out);
  }
}

// Output rows [n0, n1), which are rows offset + n of w.
template <class X, class Rows>
void multiply_rows(const Rows& w, int64_t offset, int64_t n0, int64_t n1, const Columns<X>& x, int64_t c0,
                   int64_t c1, int64_t k, const TileSink& sink) {
  int64_t n = n0;
  if (c1 - c0 == 1)
    for (; n + kStreamRows <= n1; n += kStreamRows)
      multiply_single<kStreamRows, X>(w, offset + n, n, x, c0, c1, k, sink);
  for (; n + kTileRows <= n1; n += kTileRows)
    multiply_columns<kTileRows, X>(w, offset + n, n, x, c0, c1, k, sink);
  for (; n < n1; ++n) multiply_single<1, X>(w, offset + n, n, x, c0, c1, k, sink);
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

// Output rows [n0, n1), weight rows row_base + n of w [.., k], against all x rows. Tiles read the stored
// weights directly where a step can; other formats go through decode_rows.
template <class X>
void multiply(const WeightView& w, int64_t row_base, int64_t n0, int64_t n1, const Columns<X>& x, int64_t k,
              const TileSink& sink) {
  const int64_t fit = kBlockBytes / (k * static_cast<int64_t>(sizeof(X)) + 1) / kTileCols * kTileCols;
  const int64_t block = fit > kTileCols ? fit : kTileCols;
  for (int64_t c0 = 0; c0 < x.count; c0 += block) {
    const int64_t c1 = c0 + block < x.count ? c0 + block : x.count;
    if (w.format == WeightFormat::bf16) {
      multiply_rows<X>(DenseRows<X, bf16>{static_cast<const bf16*>(w.data), k}, row_base, n0, n1, x, c0, c1,
                       k, sink);
      continue;
    }
    if constexpr (std::is_same_v<X, float>) {
      if (w.format == WeightFormat::f32) {
        multiply_rows<X>(DenseRows<X, float>{static_cast<const float*>(w.data), k}, row_base, n0, n1, x, c0,
                         c1, k, sink);
        continue;
      }
    }
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<X, bf16>) {
      if (w.format == WeightFormat::mxfp4 && x.count <= kTileCols) {
        multiply_rows<X>(MxRows{static_cast<const uint8_t*>(w.data), w.scales, k / kMxBlock}, row_base, n0,
                         n1, x, c0, c1, k, sink);
        continue;
      }
    }
#endif
    for (int64_t n = n0; n < n1; n += kTileRows) {
      const int64_t end = n + kTileRows < n1 ? n + kTileRows : n1;
      const X* panel = decode_rows<X>(w, row_base + n, end - n, k);
      multiply_rows<X>(DenseRows<X, X, false>{panel, k}, -n, n, end, x, c0, c1, k, sink);
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
