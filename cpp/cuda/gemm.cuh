// y[r, n] = sum over k of x[r, k] w[n, k]: one matrix product for dense layers and for the experts of a
// mixture, in two launch shapes that give the same bits.
//
// Order of summation, a function of k and T alone: k is cut into at most kMaxChunks chunks of whole steps;
// inside a chunk tile products in ascending order; then the chunks' sums in ascending order, the bias, the
// old y.
//
//   gemm_split_kernel   few rows, bound by memory: the warps of a block take different chunks of the same
//   columns
//                       and the chunks' sums meet in shared memory
//   gemm_block_kernel   many rows: a block of 64 rows and 128 columns; x passes through shared memory, a warp
//   walks
//                       all of k for its own columns and decodes each weight once for 64 rows
#pragma once

#include "cuda/gemm_weights.cuh"
#include "cuda/swiglu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kMaxChunks = 8;

// Columns of a chunk.
TRIVIUM_INLINE int64_t chunk_size(int64_t k) {
  const int64_t part = (k + kMaxChunks - 1) / kMaxChunks;
  return (part + kStep - 1) / kStep * kStep;
}

// With offsets, rows [offsets[e], offsets[e + 1]) meet matrix e of w; without, all m rows meet the one
// matrix.
struct GemmArgs {
  const void* x;                           // [.., k], row stride x_stride
  const int32_t* tokens_of_row = nullptr;  // [m]: which row of x; null: row r itself
  WeightView w;                            // [experts, n, k]
  VectorView bias;                         // [experts, n]
  const int32_t* offsets = nullptr;        // [experts + 1] or null
  void* y;  // [m, n] float32, or after SwiGLU [m, n / 2] of x's type; row stride y_stride
  int64_t m, n, k, x_stride, y_stride, num_experts;
  float alpha = 0, limit = 0;  // SwiGLU
  int32_t accumulate = 0;      // y += instead of y =
};

// Consecutive rows that meet one expert.
struct RowBlock {
  int64_t first;
  int expert;
  int count;  // 0: nothing to do
};

// Block number `index` when every expert's rows are cut into blocks of `size`. All lanes of a warp get the
// same.
GPU_DEVICE RowBlock find_rows(const GemmArgs& a, int64_t index, int size) {
  if (!a.offsets) {
    const int64_t first = index * size, left = a.m - first;
    return {first, 0, static_cast<int>(left < size ? left : size)};
  }
  int64_t before = 0;  // blocks of the experts seen so far
  for (int64_t e0 = 0; e0 < a.num_experts; e0 += kWarpSize) {
    const int64_t e = e0 + lane_id();
    const int begin = e < a.num_experts ? a.offsets[e] : 0, end = e < a.num_experts ? a.offsets[e + 1] : 0;
    const int blocks = (end - begin + size - 1) / size;
    int sum = blocks;
#pragma unroll
    for (int d = 1; d < kWarpSize; d *= 2) {
      const int other = shfl_up(sum, d);
      if (lane_id() >= d) sum += other;
    }
    const int at = static_cast<int>(index - before);
    const int lane = popcount(ballot(sum <= at));
    if (lane < kWarpSize) {
      const int first = shfl(begin + (at - sum + blocks) * size, lane), left = shfl(end, lane) - first;
      return {first, static_cast<int>(e0) + lane, left < size ? left : size};
    }
    before += shfl(sum, kWarpSize - 1);
  }
  return {0, 0, 0};
}

// Row r of a row block: where it lies in x.
template <class T>
GPU_DEVICE const T* input_row(const GemmArgs& a, const RowBlock& rows, int r) {
  const int64_t row = rows.first + r;
  return as<const T>(a.x) + (a.tokens_of_row ? a.tokens_of_row[row] : row) * a.x_stride;
}

// Where a lane reads in one row of x: its 32 columns of the current step, as WeightRow.
template <class T>
struct InputRow {
  const T* data;
  bool there;
  GPU_DEVICE void set(const GemmArgs& a, const RowBlock& rows, int r, int k0) {
    there = r < rows.count;
    data = as<const T>(a.x);
    if (there) data = input_row<T>(a, rows, r) + k0 + kLaneStep * Tile<T>::group();
  }
  GPU_DEVICE void advance() { data += kStep; }
  // 8 columns from `at` on, of which the first `columns` after data exist; kAligned: they lie at a multiple
  // of 16 bytes, and all are there or none.
  template <bool kAligned>
  GPU_DEVICE void load(int at, int columns, T (&out)[8]) const {
    const int left = there ? columns : 0;
    if constexpr (kAligned) {
      constexpr int kVec = 16 / sizeof(T);
#pragma unroll
      for (int i = 0; i < 8; i += kVec) {
        Bits v{};
        if (at < left) v = load_vec<4>(reinterpret_cast<const uint32_t*>(data + at + i));
        const auto values = __builtin_bit_cast(Vec<T, kVec>, v);
#pragma unroll
        for (int j = 0; j < kVec; ++j) out[i + j] = values.x[j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) out[j] = at + j < left ? data[at + j] : T{};
    }
  }
};

GPU_DEVICE float vector_at(const VectorView& v, int64_t i) {
  if (!v.data) return 0.0f;
  if (v.dtype == Dtype::bf16) return to_float(as<const bf16>(v.data)[i]);
  if (v.dtype == Dtype::f16) return to_float(as<const f16>(v.data)[i]);
  return as<const float>(v.data)[i];
}

// Writes columns n and n + 1 (n even) of a row; sum(i) is the product of column n + i. A NaN stays one.
template <class T, bool kSwiglu, class Sum>
GPU_DEVICE void write_pair(const GemmArgs& a, const RowBlock& rows, int r, int64_t n, Sum sum) {
  const int64_t row = rows.first + r, bias = rows.expert * a.n + n;
  if constexpr (kSwiglu) {
    if (n >= a.n) return;
    const float gate = sum(0) + vector_at(a.bias, bias), linear = sum(1) + vector_at(a.bias, bias + 1);
    as<T>(a.y)[row * a.y_stride + n / 2] = from_float<T>(swiglu_value(gate, linear, a.alpha, a.limit));
  } else {
    float* y = as<float>(a.y) + row * a.y_stride + n;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (n + i < a.n) {
        const float value = sum(i) + vector_at(a.bias, bias + i);
        y[i] = a.accumulate ? value + y[i] : value;
      }
  }
}

}  // namespace trivium::TRIVIUM_GPU_NS
