// Attention of one tile of 16 rows over blocks of 64 keys, by one block of 128 threads. T is what enters the
// matrix products (bf16 or float), KV the dtype of the cache, D the head dimension rounded up to 64 or
// 256, of which a block puts out output_dims<T>(D).
//
// A warp computes the scores of its 16-key tiles straight from global memory; the values go through shared
// memory, where they are transposed, and a warp computes its 16-dim tiles of weights times values. Weights
// are rounded to T before both the product and their sum. Scores of invisible keys are -inf and their weights
// exact zeros; values that are not finite are multiplied apart, because 0 * inf would reach rows that do not
// see them.
#pragma once

#include "cuda/kernels/attention.cuh"
#include "cuda/tile.cuh"

namespace trivium::TRIVIUM_GPU_NS {

template <class T, class KV, int D>
struct AttentionTile {
  using Mma = Tile<T, kKeyTiles>;
  using Acc = typename Mma::Acc;
  using Operand = typename Mma::Operand;
  using Shared = AttentionShared<T>;
  static constexpr int kRows = Mma::kAccRows;
  static constexpr int kWarps = kAttentionThreads / kWarpSize,
                       kTiles = kKeyTiles / kWarps;  // tiles of a warp
  static constexpr int kOutDims = output_dims<T>(D);
  static constexpr int kDimTiles = kOutDims / kValueDims * kTiles;
  static constexpr int kVec = 16 / sizeof(KV);
  static constexpr int kItems = kKeyBlock / 2 * (kValueDims / kVec) / kAttentionThreads;
  static constexpr bool kKeepQuery =
      D * sizeof(T) <= 512;  // in shared memory; else it is read for every block
  static constexpr int kQueryPitch = D + (sizeof(T) == 2 ? 32 : 4);  // operand loads without bank conflicts

  static constexpr int kUnrollKeys = D == 64 && sizeof(T) == 2 ? 2 : 1;

  // Part of a softmax for the rows of this lane, and its share of their weighted values.
  struct Partial {
    float max[kRows], sum[kRows];
    Acc o[kDimTiles];

    GPU_DEVICE void clear() {
#pragma unroll
      for (int r = 0; r < kRows; ++r) max[r] = -INFINITY, sum[r] = 0;
#pragma unroll
      for (int j = 0; j < kDimTiles; ++j)
#pragma unroll
        for (int i = 0; i < Mma::kAcc; ++i) o[j].x[i] = 0;
    }
  };

  // Values on their way from global to shared memory: two keys by kVec dims each.
  struct Values {
    Vec<KV, kVec> x[kItems][2];
  };

  const AttentionArgs& a;
  const AttentionPlan& plan;
  const AttentionPass& pass;
  Shared shared;
  bool vector;  // rows of the cache are 16-byte aligned
  int position[kRows], first[kRows], stage = 0;

  GPU_DEVICE AttentionTile(const AttentionArgs& args, const AttentionPlan& p, const AttentionPass& of,
                           const Shared& memory)
      : a(args), plan(p), pass(of), shared(memory) {
    vector = a.head_dim % kVec == 0 &&
             (reinterpret_cast<uintptr_t>(a.kv.k) | reinterpret_cast<uintptr_t>(a.kv.v)) % 16 == 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      position[r] = row_position(row_of(r));
      first[r] = first_visible(a, position[r]);
    }
    if constexpr (kKeepQuery)
      for (int i = static_cast<int>(threadIdx.x); i < 16 * D; i += kAttentionThreads)
        shared.query[i / D * kQueryPitch + i % D] = from_float<T>(query_element(i / D, i % D));
  }

  GPU_DEVICE int dim() const { return static_cast<int>(a.head_dim); }
  GPU_DEVICE static int tile(int j) { return warp_id() + kWarps * j; }  // of keys or of dims within a chunk

  // The row of the tile that holds a lane's elements i with acc_row(i) == r.
  GPU_DEVICE static int row_of(int r) {
    int row = 0;
#pragma unroll
    for (int i = 0; i < Mma::kAcc; ++i)
      if (Mma::acc_row(i) == r) row = Mma::coord(i).row;
    return row;
  }

  // The position of a row of the tile, -1 when it is none of this pass.
  GPU_DEVICE int row_position(int row) const {
    const int token = row / plan.heads_per_tile, head = row % plan.heads_per_tile;
    return token < plan.tokens_per_tile && head < pass.heads ? shared.positions[token] : -1;
  }

  // Whether the row of elements with acc_row(i) == r sees any key of the blocks [begin, end).
  GPU_DEVICE bool sees(int r, int begin, int end) const {
    return position[r] >= 0 && position[r] / kKeyBlock >= begin && first[r] / kKeyBlock < end;
  }

  // Adds the maxima and sums of later keys; `by` is what their weighted values are to be merged with. A row
  // that sees none of them has a maximum of -inf and zeros there, which change nothing.
  GPU_DEVICE static void merge_sums(Partial& to, const float (&max)[kRows], const float (&sum)[kRows],
                                    MaxMerge (&by)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      by[r] = merge_max(to.max[r], max[r]);
      to.max[r] = by[r].max;
      to.sum[r] = by[r].add(to.sum[r], sum[r]);
    }
  }
  GPU_DEVICE static void merge_values(Acc& to, const Acc& later, const MaxMerge (&by)[kRows]) {
#pragma unroll
    for (int i = 0; i < Mma::kAcc; ++i) to.x[i] = by[Mma::acc_row(i)].add(to.x[i], later.x[i]);
  }
  GPU_DEVICE static void merge(Partial& to, const Partial& later) {
    MaxMerge by[kRows];
    merge_sums(to, later.max, later.sum, by);
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) merge_values(to.o[j], later.o[j], by);
  }

  // The head dimension of element i of a lane's tile j of the output.
  GPU_DEVICE int dim_of(int j, int i) const {
    return pass.dim + j / kTiles * kValueDims + 16 * tile(j % kTiles) + Mma::coord(i).col;
  }

  GPU_DEVICE float query_element(int row, int d) const {
    if (d >= dim() || row_position(row) < 0) return 0;
    return a.q[(pass.first_token + row / plan.heads_per_tile) * a.q_stride +
               (pass.head + row % plan.heads_per_tile) * a.head_dim + d];
  }

  GPU_DEVICE Operand load_query(int k) const {
    if constexpr (kKeepQuery) {
      return load_operand<Mma>(shared.query + 32 * k, kQueryPitch);
    } else {
      Operand o;
#pragma unroll
      for (int r = 0; r < Mma::kRows; ++r)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          o.x[r][j] = from_float<T>(query_element(Mma::row(r), 32 * k + 8 * Mma::group() + j));
      return o;
    }
  }

  // Finds the keys of block b in the pages.
  GPU_DEVICE void locate_keys(int b) const {
    if (threadIdx.x >= kKeyBlock) return;
    const int key = kKeyBlock * b + static_cast<int>(threadIdx.x);
    bool seen = false;
    for (int t = 0; t < plan.tokens_per_tile; ++t) {
      const int p = shared.positions[t];
      seen = seen || (key <= p && key >= first_visible(a, p));
    }
    int64_t at = -1;
    if (seen) {
      const int block = key / a.kv.page_size % a.kv.blocks_per_slot;
      const int64_t page = a.kv.block_table[static_cast<int64_t>(pass.slot) * a.kv.blocks_per_slot + block];
      at = ((page * a.num_kv_heads + pass.kv_head) * a.kv.page_size + key % a.kv.page_size) * a.head_dim;
    }
    shared.keys[b % 2 * kKeyBlock + threadIdx.x] = at;
  }

  GPU_DEVICE Operand load_keys(const int64_t* keys, int tile_of_keys, int k) const {
    Operand o;
#pragma unroll
    for (int r = 0; r < Mma::kRows; ++r) {
      const int64_t at = keys[16 * tile_of_keys + Mma::row(r)];
#pragma unroll
      for (int j = 0; j < 8; j += kVec) {
        Vec<KV, kVec> v{};
        if (at >= 0) v = load_row<kVec>(as<KV>(a.kv.k) + at, 32 * k + 8 * Mma::group() + j, dim(), vector);
#pragma unroll
        for (int i = 0; i < kVec; ++i) o.x[r][j + i] = from_float<T>(to_float(v.x[i]));
      }
    }
    return o;
  }

  // Item i of a thread: a pair of keys and kVec of the dims that are staged together.
  GPU_DEVICE static int item_pair(int i) {
    return (static_cast<int>(threadIdx.x) + i * kAttentionThreads) / (kValueDims / kVec);
  }
  GPU_DEVICE static int item_dim(int i) {
    return (static_cast<int>(threadIdx.x) + i * kAttentionThreads) % (kValueDims / kVec) * kVec;
  }
  GPU_DEVICE void load_values(const int64_t* keys, int chunk, Values& v) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int64_t at = keys[2 * item_pair(i) + n];
        v.x[i][n] = {};
        if (at >= 0)
          v.x[i][n] =
              load_row<kVec>(as<KV>(a.kv.v) + at, pass.dim + kValueDims * chunk + item_dim(i), dim(), vector);
      }
  }

  GPU_DEVICE static bool is_finite(float x) { return abs(x) <= 3.402823466e38f; }

  GPU_DEVICE void store_values(const Values& v) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
      for (int d = 0; d < kVec; ++d) {
        Vec<T, 2> pair;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float x = to_float(v.x[i][n].x[d]);
          finite = finite && is_finite(x);
          pair.x[n] = from_float<T>(is_finite(x) ? x : 0.0f);
        }
        store_vec(shared.values + Shared::value_at(item_dim(i) + d, 2 * item_pair(i)), pair);
      }
    if (threadIdx.x == 0) shared.not_finite[(stage + 1) % 2] = 0;
    if (!finite) shared.not_finite[stage % 2] = 1;
    ++stage;
  }

  // scale * q k for the tiles of keys of this warp, -inf where a row does not see the key; the maximum of
  // each tile of a row goes to shared memory.
  GPU_DEVICE void score(int b, const int64_t* keys, Acc (&s)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      s[j] = {};
#pragma unroll kUnrollKeys
      for (int k = 0; k < D / 32; ++k)
        if (32 * k < dim()) Mma::mma(s[j], load_query(k), load_keys(keys, tile(j), k));
#pragma unroll
      for (int i = 0; i < Mma::kAcc; ++i) {
        const int key = kKeyBlock * b + 16 * tile(j) + Mma::coord(i).col, r = Mma::acc_row(i);
        s[j].x[i] = key >= first[r] && key <= position[r] ? a.scale * s[j].x[i] : -INFINITY;
      }
      float m[kRows];
      Mma::row_max(s[j], m);
      store_first_column(shared.maxima + 16 * tile(j), m);
    }
  }

  // What every lane of a row knows, written by the one that holds its column 0.
  GPU_DEVICE static void store_first_column(float* to, const float (&x)[kRows]) {
#pragma unroll
    for (int i = 0; i < Mma::kAcc; ++i)
      if (Mma::coord(i).col == 0) to[Mma::coord(i).row] = x[Mma::acc_row(i)];
  }

  // Weights of the scores to shared memory, with the sums of each tile; fills `max`.
  GPU_DEVICE void weigh(Acc (&s)[kTiles], float (&max_of)[kRows]) const {
    float base[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      max_of[r] = shared.maxima[row_of(r)];
#pragma unroll
      for (int t = 1; t < kKeyTiles; ++t) max_of[r] = max(max_of[r], shared.maxima[16 * t + row_of(r)]);
      base[r] = max_of[r] == -INFINITY ? 0.0f : max_of[r];  // -inf - -inf would be NaN
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < Mma::kAcc; ++i) {
        const float x = s[j].x[i] - base[Mma::acc_row(i)];
        T p;
        if constexpr (sizeof(T) == 2)
          p = from_float<T>(fast_exp(x));
        else
          p = exp(x);
        const Coord c = Mma::coord(i);
        shared.weights[c.row * Shared::kWeightPitch + 16 * tile(j) + c.col] = p;
        s[j].x[i] = to_float(p);
      }
      float sum[kRows];
      Mma::row_sum(s[j], sum);
      store_first_column(shared.sums + 16 * tile(j), sum);
    }
  }

  // What values that are not finite add to tile j of the output, for the rows that see them. Almost never
  // run.
  GPU_DEVICE void add_not_finite(int b, const int64_t* keys, int j, Acc& o) const {
#pragma unroll 1
    for (int n = 0; n < kKeyBlock; ++n) {
      const int key = kKeyBlock * b + n;
      if (keys[n] < 0) continue;
#pragma unroll
      for (int i = 0; i < Mma::kAcc; ++i) {
        const int r = Mma::acc_row(i), d = dim_of(j, i);
        const float v = to_float(as<KV>(a.kv.v)[keys[n] + (d < dim() ? d : 0)]),
                    p = to_float(shared.weights[row_of(r) * Shared::kWeightPitch + n]);
        const bool seen = key >= first[r] && key <= position[r];
        o.x[i] = seen && !is_finite(v) ? fma(p, v, o.x[i]) : o.x[i];
      }
    }
  }

  // weights * values for the staged dims.
  GPU_DEVICE void weigh_values(int b, const int64_t* keys, int chunk, Acc (&o)[kTiles]) const {
    constexpr int kChunk = Shared::kChunk;
    Operand p[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) p[k] = load_operand<Mma>(shared.weights + 32 * k, Shared::kWeightPitch);
    const bool not_finite = shared.not_finite[(stage + 1) % 2] != 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      o[j] = {};
      if (pass.dim + kValueDims * chunk + 16 * tile(j) >= dim()) continue;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        Operand v;
#pragma unroll
        for (int r = 0; r < Mma::kRows; ++r)
#pragma unroll
          for (int i = 0; i < 8; i += kChunk) {
            const auto x = load_vec<kChunk>(
                shared.values + Shared::value_at(16 * tile(j) + Mma::row(r), 32 * k + 8 * Mma::group() + i));
#pragma unroll
            for (int n = 0; n < kChunk; ++n) v.x[r][i + n] = x.x[n];
          }
        Mma::mma(o[j], p[k], v);
      }
      if (not_finite) add_not_finite(b, keys, chunk * kTiles + j, o[j]);
    }
  }

  // Adds the keys of block b, whose places are in shared.keys, to `split`. Syncs twice (more when D > 64).
  GPU_DEVICE void add_keys(int b, Partial& split) {
    const int64_t* keys = shared.keys + b % 2 * kKeyBlock;
    Acc s[kTiles];
    score(b, keys, s);
    Values v;
    load_values(keys, 0, v);  // under way during the sync and the exponentials
    sync_block();  // maxima are written; values, weights and keys of the block before have been read
    float max_of[kRows], sum_of[kRows];
    weigh(s, max_of);
    store_values(v);
    locate_keys(b + 1);
    sync_block();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum_of[r] = shared.sums[row_of(r)];
#pragma unroll
      for (int t = 1; t < kKeyTiles; ++t) sum_of[r] += shared.sums[16 * t + row_of(r)];
    }
    MaxMerge by[kRows];
    merge_sums(split, max_of, sum_of, by);
#pragma unroll
    for (int chunk = 0; chunk < kOutDims / kValueDims; ++chunk)
      if (pass.dim + kValueDims * chunk < dim()) {
        if (chunk > 0) {
          sync_block();
          load_values(keys, chunk, v);
          store_values(v);
          sync_block();
        }
        Acc o[kTiles];
        weigh_values(b, keys, chunk, o);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) merge_values(split.o[chunk * kTiles + j], o[j], by);
      }
  }
};

}  // namespace trivium::TRIVIUM_GPU_NS
