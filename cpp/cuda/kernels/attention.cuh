// Parts of the attention kernels that do not depend on the tile: how a launch cuts the work, how partial
// softmaxes are merged and finished, what a block holds in shared memory. A row is one query head of one
// token.
//
// Keys are taken in blocks of kKeyBlock at multiples of kKeyBlock. A block's scores are reduced with the
// block's own maximum; a row's blocks are merged in ascending order within a split, its splits in ascending
// order, then the sink (flash attention, Dao et al. 2022; split keys, Dao et al. 2023). Where splits end
// depends on the row's position alone. So a row has the same bits in every launch, alone or in a batch, as
// prompt or as decode.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kKeyBlock = 64;

struct AttentionPlan {
  int group;           // query heads of a kv head
  int heads_per_tile;  // of the 16 rows of a tile: row r is token r / heads_per_tile, head r % heads_per_tile
  int tokens_per_tile;  // tokens share a tile when they are in the same slot and have equal splits
  int head_tiles;       // tiles that hold a group
  int dim_tiles;        // blocks that share the head dimension, see output_dims
  int window_split;     // key blocks in a split of a windowed row; 0: see split_blocks
  int splits;           // most splits of a row; split s has entry s % splits of the workspace
  int partial;  // 1: a block is one split and writes the workspace; 0: it loops over them and writes out
};

// Key blocks in a split of the row at `position`; splits begin at multiples of it.
GPU_DEVICE int split_blocks(const AttentionPlan& plan, int position) {
  return plan.window_split ? plan.window_split : position / (kKeyBlock * kAttentionSplits) + 1;
}

GPU_DEVICE int first_visible(const AttentionArgs& a, int position) {
  return a.window > 0 && position >= a.window ? static_cast<int>(position - a.window) + 1 : 0;
}

// Where the workspace holds the split of a row: its maximum, its sum and head_dim sums of weighted values.
GPU_DEVICE float* partial_of(const AttentionArgs& a, const AttentionPlan& plan, int64_t token, int64_t head,
                             int split) {
  const int64_t row = token * a.num_heads + head;
  return a.workspace + (row * kAttentionSplits + split % plan.splits) * (a.head_dim + 2);
}

// Sums relative to the maxima m0 and m1 are multiplied by `a` and `b` to be relative to `max`. A sum of no
// keys has the maximum -inf and is zero: adding it changes no bit, for which a sum must never be -0.
struct MaxMerge {
  float max, a, b;
  GPU_DEVICE float add(float x, float later) const { return fma(x, a, later * b) + 0.0f; }
};
GPU_DEVICE MaxMerge merge_max(float m0, float m1) {
  const float m = max(m0, m1);
  return {m, m0 == m ? 1.0f : exp(m0 - m), m1 == m ? 1.0f : exp(m1 - m)};
}

// A row's result is o * factor / total.
struct Normaliser {
  float factor, total;
};
GPU_DEVICE Normaliser normaliser(const AttentionArgs& a, int64_t head, float maximum, float sum) {
  if (!a.sinks.data) return {1.0f, sum};
  const float sink = a.sinks.dtype == Dtype::bf16  ? to_float(as<bf16>(a.sinks.data)[head])
                     : a.sinks.dtype == Dtype::f16 ? to_float(as<f16>(a.sinks.data)[head])
                                                   : as<float>(a.sinks.data)[head];
  const MaxMerge m = merge_max(maximum, sink);
  return {m.a, fma(sum, m.a, m.b)};
}

GPU_DEVICE void store_out(const AttentionArgs& a, int64_t at, float value) {
  if (a.out_dtype == Dtype::bf16)
    as<bf16>(a.out)[at] = to_bf16(value);
  else
    as<float>(a.out)[at] = value;
}

inline constexpr int kAttentionThreads = 128;
inline constexpr int kKeyTiles = kKeyBlock / 16;
inline constexpr int kValueDims = 64;  // dims of the values that are in shared memory at a time

// Dims of the output that a block computes: more do not fit its registers, so that another block computes the
// scores again for the next ones.
template <class T>
constexpr int output_dims(int64_t head_dim) {
  return head_dim > 64 && sizeof(T) == 2 ? 128 : 64;
}

// What a block works on: the tokens of a tile that are in one slot and have equal splits.
struct AttentionPass {
  int64_t first_token;  // of the tile
  int64_t head;         // first query head of the tile
  int64_t kv_head;
  int heads;            // in the tile
  int dim;              // first dim of the output
  int slot, span;       // span: key blocks in a split
  int lowest, highest;  // keys that any row sees
};

template <class T>
struct AttentionShared {
  static constexpr int kChunk = 16 / sizeof(T);  // elements of a 16-byte access
  static constexpr int kWeightPitch = kKeyBlock + kChunk;

  T* values;      // [kValueDims, kKeyBlock], see value_at
  T* weights;     // [16, kWeightPitch]
  T* query;       // [16, AttentionTile::kQueryPitch]
  float* maxima;  // [kKeyTiles, 16]
  float* sums;    // [kKeyTiles, 16]
  int64_t*
      keys;  // [2, kKeyBlock]: element of a key's row in the cache, -1 when no row sees it; by parity of b
  int* positions;   // [16]: of the tile's tokens, -1 when not in this pass
  int* not_finite;  // [2]: the staged values have an inf or NaN; by parity of the stage

  // Chunks of a row are permuted so that neither the transposing stores nor the loads of operands collide in
  // a bank.
  GPU_DEVICE static int value_at(int dim, int key) {
    const int swizzle = dim / kChunk ^ (dim & 1) * (sizeof(T) == 2 ? 4 : 1);
    return dim * kKeyBlock + (key / kChunk ^ swizzle) * kChunk + key % kChunk;
  }
};

// N consecutive elements of a row of `dim`, an even number, zeros past its end; `vector`: rows are 16-byte
// aligned, else aligned to two elements.
template <int N, class X>
GPU_DEVICE Vec<X, N> load_row(const X* row, int at, int dim, bool vector) {
  Vec<X, N> v{};
  if (vector) {
    if (at < dim) v = load_vec<N>(row + at);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      if (at + i >= dim) continue;
      const Vec<X, 2> pair = load_vec<2>(row + at + i);
      v.x[i] = pair.x[0], v.x[i + 1] = pair.x[1];
    }
  }
  return v;
}

}  // namespace trivium::TRIVIUM_GPU_NS
