// The two launch shapes of gemm.cuh.
#pragma once

#include "cuda/gemm.cuh"

namespace trivium::TRIVIUM_GPU_NS {

// x of products s to s + kInputs - 1.
template <bool kAligned, class T, class Operand, int kInputs, int kRowTiles, int kRows>
GPU_DEVICE void load_inputs(Operand (&in)[kInputs][kRowTiles], const InputRow<T> (&x)[kRowTiles][kRows],
                            int columns, int s) {
#pragma unroll
  for (int i = 0; i < kInputs; ++i)
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int r = 0; r < kRows; ++r) x[m][r].template load<kAligned>(8 * (s + i), columns, in[i][m].x[r]);
}

// acc = x[rows, k0..k1) w[n0.., k0..k1)^T of one warp. The next weights are under way while these are
// multiplied.
template <class T, class W, int kRowTiles, int kColTiles>
GPU_DEVICE void multiply_chunk(typename Tile<T>::Acc (&acc)[kRowTiles][kColTiles], const GemmArgs& a,
                               const RowBlock& rows, int64_t n0, int k0, int k1) {
  constexpr bool kAligned = !std::is_same_v<W, AnyFormat>;
  // As many loads under way as the registers allow. Float16 takes the most of them to become another type.
  constexpr bool kConverts = !std::is_same_v<T, W> && !std::is_same_v<W, Mxfp4>;
  constexpr bool kLarge = sizeof(T) * sizeof(W) > (std::is_same_v<W, f16> ? 4 : 8);
  constexpr int kCount = !kAligned || kLarge ? 1 : kConverts ? 2 : kProducts;
  // CDNA returns loads in order, so that waiting for x would wait for the next weights too: x goes first.
  constexpr int kInputs = kWarpSize == 64 ? kProducts : 1;
  using Weights = WeightTiles<T, W, kColTiles, kCount>;
  InputRow<T> x[kRowTiles][Tile<T>::kRows];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int r = 0; r < Tile<T>::kRows; ++r) x[m][r].set(a, rows, 16 * m + Tile<T>::row(r), k0);
  typename Weights::Place w;
  Weights::set(w, rows.expert, a.n, a.k, n0, k0, k1);
  Weights now, next;
  now.load(w, a.w, a.k, 0);
  for (int left = k1 - k0; left > 0; left -= kStep) {
    typename Tile<T>::Operand in[kInputs][kRowTiles];
    const int columns = w.left;  // of this step; w may be at the next one already
#pragma unroll
    for (int s = 0; s < kProducts; ++s) {
      if (s % kInputs == 0) load_inputs<kAligned>(in, x, columns, s);
      if constexpr (kConverts) sync_warp();  // no loads of later products: registers
      if (s % kCount == 0) next.load(w, a.w, a.k, s + kCount);
      typename Tile<T>::Operand b[kColTiles];
      now.decode(s % kCount, b);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) Tile<T>::mma(acc[m][c], in[s % kInputs][m], b[c]);
      if ((s + 1) % kCount == 0) now = next;
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int r = 0; r < Tile<T>::kRows; ++r) x[m][r].advance();
  }
}

// Block (i, j): row block i (16 kRowTiles rows), columns from 16 kColTiles j on; a warp takes every
// num_warps()-th chunk. Shared memory: the chunks' sums, [chunks, rows, columns] float32; one block-wide
// meeting.
template <class T, class W, bool kSwiglu, int kRowTiles, int kColTiles>
GPU_KERNEL(256, (std::is_same_v<T, float> ? 2 : 0))
void gemm_split_kernel(GemmArgs a) {
  constexpr int kRows = 16 * kRowTiles, kCols = 16 * kColTiles;
  GPU_DYNAMIC_SHARED(float, sums);
  const RowBlock rows = find_rows(a, blockIdx.x, kRows);
  if (rows.count == 0) return;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kCols;
  const int k = static_cast<int>(a.k), chunk = static_cast<int>(chunk_size(a.k));
  int chunks = 0;
  for (int k0 = 0; k0 < k; k0 += chunk) ++chunks;
  for (int c = warp_id(); c < chunks; c += num_warps()) {
    typename Tile<T>::Acc acc[kRowTiles][kColTiles] = {};
    multiply_chunk<T, W>(acc, a, rows, n0, c * chunk, c + 1 < chunks ? (c + 1) * chunk : k);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int t = 0; t < kColTiles; ++t)
#pragma unroll
        for (int i = 0; i < Tile<T>::kAcc; ++i) {
          const Coord at = Tile<T>::coord(i);
          sums[(c * kRows + 16 * m + at.row) * kCols + 16 * t + at.col] = acc[m][t].x[i];
        }
  }
  sync_block();
  for (int i = threadIdx.x; i < rows.count * (kCols / 2); i += blockDim.x) {
    const int r = i / (kCols / 2), column = i % (kCols / 2) * 2;
    write_pair<T, kSwiglu>(a, rows, r, n0 + column, [&](int j) {
      float sum = 0;
      for (int c = 0; c < chunks; ++c) {
        const float part = sums[(c * kRows + r) * kCols + column + j];
        sum = c == 0 ? part : sum + part;
      }
      return sum;
    });
  }
}

inline constexpr int kBlockRows = 64, kBlockCols = 128, kBlockThreads = 128;

// Half a step of up to 64 rows of x in shared memory: products s and s + 1, so 8 pieces of 8 columns a row.
// Pieces are swapped within a row so that neither 2 rows of 4 groups (32 lanes) nor 8 rows of one group (64)
// share a bank.
struct InputStage {
  static constexpr int kValues = kBlockRows * 64;
  GPU_DEVICE static int place(int row, int product, int group) {
    return (row * 8 + ((4 * product + group) ^ ((row & 1) << 2 | (row >> 1 & 3)))) * 8;
  }
};

// What a thread copies of every stage: one piece of kCopies rows, 16 rows apart. Neighbours copy neighbouring
// pieces.
template <class T, int kCopies>
struct StageCopy {
  static_assert(kBlockThreads == 16 * 8);
  const T* base;      // this thread's first column
  int from[kCopies];  // rows after base; negative: zeros
  int row, product, group;

  GPU_DEVICE StageCopy(const GemmArgs& a, const RowBlock& rows)
      : row(threadIdx.x / 8), product(threadIdx.x % 2), group(threadIdx.x / 2 % 4) {
    base =
        as<const T>(a.x) + (a.tokens_of_row ? 0 : rows.first * a.x_stride) + kLaneStep * group + 8 * product;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int r = row + 16 * i;
      from[i] = r >= rows.count ? -1 : a.tokens_of_row ? a.tokens_of_row[rows.first + r] : r;
    }
  }
  // Stage `index` of k columns.
  GPU_DEVICE void start(const GemmArgs& a, T* stage, int index, int k) const {
    const int at = index / 2 * kStep + index % 2 * 16;
    const bool there = at + kLaneStep * group + 8 * product < k;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool valid = there && from[i] >= 0;
      async_copy16(stage + InputStage::place(row + 16 * i, product, group),
                   valid ? base + from[i] * a.x_stride + at : as<const T>(a.x), valid);
    }
    async_commit();
  }
};

// Writes the tiles of a warp through its 16 rows of shared memory.
template <class T, bool kSwiglu, int kRowTiles, int kColTiles>
GPU_DEVICE void write_tiles(const GemmArgs& a, const RowBlock& rows, int64_t n0, float* shared,
                            const typename Tile<T>::Acc (&total)[kRowTiles][kColTiles]) {
  constexpr int kCols = 16 * kColTiles;
  float* tile = shared + warp_id() * 16 * kCols;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    if (16 * m >= rows.count) break;
    sync_warp();
#pragma unroll
    for (int t = 0; t < kColTiles; ++t)
#pragma unroll
      for (int i = 0; i < Tile<T>::kAcc; ++i) {
        const Coord at = Tile<T>::coord(i);
        tile[at.row * kCols + 16 * t + at.col] = total[m][t].x[i];
      }
    sync_warp();
    for (int i = lane_id(); i < 16 * kCols / 2; i += kWarpSize) {
      const int r = i / (kCols / 2), column = i % (kCols / 2) * 2;
      if (16 * m + r < rows.count)
        write_pair<T, kSwiglu>(a, rows, 16 * m + r, n0 + column,
                               [&](int j) { return tile[r * kCols + column + j]; });
    }
  }
}

// acc += products with one half step of x; the warp's weights stand in b. Row tiles from `tiles` on are
// empty.
template <class T, int kRowTiles, int kColTiles>
GPU_DEVICE void multiply_stage(typename Tile<T>::Acc (&acc)[kRowTiles][kColTiles], const T* stage,
                               int product, int tiles, const typename Tile<T>::Operand (&b)[kColTiles]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
    if (m < tiles) {
      typename Tile<T>::Operand in;
#pragma unroll
      for (int r = 0; r < Tile<T>::kRows; ++r) {
        const int place = InputStage::place(16 * m + Tile<T>::row(r), product, Tile<T>::group());
        const Vec<T, 8> v = load_vec<8>(stage + place);
#pragma unroll
        for (int j = 0; j < 8; ++j) in.x[r][j] = v.x[j];
      }
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) Tile<T>::mma(acc[m][c], in, b[c]);
    }
}

// Closes a chunk: its sums join the total and start anew.
template <class Acc, int kRowTiles, int kColTiles>
GPU_DEVICE void add_chunk(Acc (&total)[kRowTiles][kColTiles], Acc (&acc)[kRowTiles][kColTiles], bool first) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
      for (int i = 0; i < Tile<float>::kAcc; ++i)
        total[m][c].x[i] = first ? acc[m][c].x[i] : total[m][c].x[i] + acc[m][c].x[i];
      acc[m][c] = {};
    }
}

// Rows [0, 16 kRowTiles) of a row block against the columns of a warp from n0 on. `shared`: two stages of x,
// later the results on their way out; a block-wide meeting for each stage.
template <class T, class W, bool kSwiglu, int kRowTiles, int kColTiles>
GPU_DEVICE void multiply_rows(const GemmArgs& a, const RowBlock& rows, int64_t n0, float* shared) {
  constexpr int kCount = std::is_same_v<W, Mxfp4> ? kProducts : 1;
  using Weights = WeightTiles<T, W, kColTiles, kCount>;
  T* const stages = reinterpret_cast<T*>(shared);
  const int tiles = n0 < a.n ? (rows.count + 15) / 16 : 0;
  const int k = static_cast<int>(a.k), chunk = static_cast<int>(chunk_size(a.k));
  const StageCopy<T, kRowTiles> copy(a, rows);
  copy.start(a, stages, 0, k);
  typename Weights::Place w;
  Weights::set(w, rows.expert, a.n, a.k, n0, 0, k);
  Weights now, next;
  now.load(w, a.w, a.k, 0);
  typename Tile<T>::Acc acc[kRowTiles][kColTiles] = {}, total[kRowTiles][kColTiles] = {};
  for (int at = 0, chunk_end = chunk; at < k; at += kStep) {
#pragma unroll
    for (int s = 0; s < kProducts; ++s) {
      if (s % 2 == 0) {
        async_wait<0>();
        sync_block();  // this stage is there, and the other has been read
        copy.start(a, stages + (1 - s / 2) * InputStage::kValues, at / kStep * 2 + s / 2 + 1, k);
      }
      if constexpr (sizeof(W) > sizeof(T)) sync_warp();
      typename Tile<T>::Operand b[kColTiles];
      now.decode(s % kCount, b);
      if constexpr (sizeof(W) > sizeof(T)) sync_warp();
      if (s % kCount == 0) next.load(w, a.w, a.k, s + kCount);
      multiply_stage<T>(acc, stages + s / 2 * InputStage::kValues, s % 2, tiles, b);
      if ((s + 1) % kCount == 0) now = next;
    }
    if (at + kStep == chunk_end || at + kStep >= k) {
      add_chunk(total, acc, chunk_end == chunk);
      chunk_end += chunk;
    }
  }
  async_wait<0>();
  sync_block();
  write_tiles<T, kSwiglu>(a, rows, n0, shared, total);
}

// Block (i, j): row block i (64 rows), columns [128 j, 128 j + 128), a warp an equal part of them. FmaTile
// needs so many registers that it takes 16 rows at a time. T has 16 bits.
template <class T, class W, bool kSwiglu>
GPU_KERNEL(kBlockThreads)
void gemm_block_kernel(GemmArgs a) {
  constexpr int kColTiles = kWarpSize * kBlockCols / kBlockThreads / 16;
  constexpr int kRowTiles = std::is_same_v<Tile<T>, FmaTile<T>> ? 1 : 4, kRows = 16 * kRowTiles;
  static_assert(sizeof(T) == 2);
  GPU_SHARED(float, shared, InputStage::kValues);
  const RowBlock rows = find_rows(a, blockIdx.x, kBlockRows);
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kBlockCols + warp_id() * 16 * kColTiles;
  for (int r = 0; r < rows.count; r += kRows) {
    const int left = rows.count - r;
    sync_block();  // the results of the rows before have left shared memory
    multiply_rows<T, W, kSwiglu, kRowTiles, kColTiles>(
        a, {rows.first + r, rows.expert, left < kRows ? left : kRows}, n0, shared);
  }
}

}  // namespace trivium::TRIVIUM_GPU_NS
