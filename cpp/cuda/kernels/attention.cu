// Causal attention over paged keys and values with an optional window and sink (see AttentionArgs), for
// prompts and decode alike. A block of threads is (token, kv head and tile of its query heads, split); tokens
// of a tile that fit together are done by the block of the first of them. With few tokens the splits of the
// keys are blocks of their own, whose results a second kernel merges; with many, or without a workspace, a
// block loops over them. kernels/ attention.cuh says why both give the same bits.
//
// Limits: head_dim even and at most 256.
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/kernels/attention_tile.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kMergeThreads = 256;
// Work items (token, tile of heads) up to which the splits of full layers are blocks of their own: above, the
// items alone fill a GPU of 132 units with 8 blocks each, and the workspace would be traffic for nothing.
constexpr int64_t kFewItems = 1024;
// Windows up to this are one split: their few blocks of keys cost less than a second kernel.
constexpr int64_t kOneSplitWindow = 256;
constexpr int kOneSplit = 1 << 26;  // more than any number of key blocks

// Fills `pass`, whose blocks compute `dims` dims, and the positions of the tile's tokens; false when the
// block has nothing to do.
GPU_DEVICE bool find_pass(const AttentionArgs& a, const AttentionPlan& plan, int dims, AttentionPass& pass,
                          int* positions) {
  const int64_t token = blockIdx.x;
  const int work = static_cast<int>(blockIdx.y) / plan.dim_tiles, tile = work % plan.head_tiles,
            position = a.positions[token];
  pass.first_token = token - token % plan.tokens_per_tile;
  pass.dim = static_cast<int>(blockIdx.y) % plan.dim_tiles * dims;
  pass.kv_head = work / plan.head_tiles;
  pass.head = pass.kv_head * plan.group + tile * plan.heads_per_tile;
  const int left = plan.group - tile * plan.heads_per_tile;
  pass.heads = left < plan.heads_per_tile ? left : plan.heads_per_tile;
  pass.slot = a.slots[token], pass.span = split_blocks(plan, position);
  pass.highest = position, pass.lowest = first_visible(a, position);
  for (int i = 0; i < plan.tokens_per_tile; ++i) {
    const int64_t t = pass.first_token + i;
    const int p = t < a.tokens ? a.positions[t] : -1;
    const bool together = t < a.tokens && a.slots[t] == pass.slot && split_blocks(plan, p) == pass.span;
    if (together && t < token) return false;  // that token's block does this one too
    if (threadIdx.x == 0) positions[i] = together ? p : -1;
    if (!together) continue;
    const int first = first_visible(a, p);
    pass.highest = p > pass.highest ? p : pass.highest;
    pass.lowest = first < pass.lowest ? first : pass.lowest;
  }
  return true;
}

template <class Attention>
GPU_DEVICE void store_partial(const Attention& t, const typename Attention::Partial& x, int split) {
  using Mma = typename Attention::Mma;
#pragma unroll
  for (int r = 0; r < Attention::kRows; ++r) {
    if (!t.sees(r, split * t.pass.span, (split + 1) * t.pass.span)) continue;
    const int row = Attention::row_of(r);
    float* to = partial_of(t.a, t.plan, t.pass.first_token + row / t.plan.heads_per_tile,
                           t.pass.head + row % t.plan.heads_per_tile, split);
    if (t.dim_of(0, 0) == 0) to[0] = x.max[r], to[1] = x.sum[r];
#pragma unroll
    for (int j = 0; j < Attention::kDimTiles; ++j)
#pragma unroll
      for (int i = 0; i < Mma::kAcc; ++i)
        if (const int d = t.dim_of(j, i); Mma::acc_row(i) == r && d < t.dim()) to[2 + d] = x.o[j].x[i];
  }
}

template <class Attention>
GPU_DEVICE void store_result(const Attention& t, const typename Attention::Partial& x) {
  using Mma = typename Attention::Mma;
#pragma unroll
  for (int r = 0; r < Attention::kRows; ++r) {
    if (t.position[r] < 0) continue;
    const int row = Attention::row_of(r);
    const int64_t token = t.pass.first_token + row / t.plan.heads_per_tile,
                  head = t.pass.head + row % t.plan.heads_per_tile;
    const Normaliser n = normaliser(t.a, head, x.max[r], x.sum[r]);
#pragma unroll
    for (int j = 0; j < Attention::kDimTiles; ++j)
#pragma unroll
      for (int i = 0; i < Mma::kAcc; ++i)
        if (const int d = t.dim_of(j, i); Mma::acc_row(i) == r && d < t.dim())
          store_out(t.a, (token * t.a.num_heads + head) * t.a.head_dim + d, x.o[j].x[i] * n.factor / n.total);
  }
}

template <class T, class KV, int D>
GPU_KERNEL(kAttentionThreads)
void attention_kernel(AttentionArgs a, AttentionPlan plan) {
  using Attention = AttentionTile<T, KV, D>;
  GPU_SHARED(T, values, kValueDims * kKeyBlock);
  GPU_SHARED(T, weights, 16 * AttentionShared<T>::kWeightPitch);
  GPU_SHARED(T, query, Attention::kKeepQuery ? 16 * Attention::kQueryPitch : 1);
  GPU_SHARED(float, maxima, kKeyTiles * 16);
  GPU_SHARED(float, sums, kKeyTiles * 16);
  GPU_SHARED(int64_t, keys, 2 * kKeyBlock);
  GPU_SHARED(int, positions, 16);
  GPU_SHARED(int, not_finite, 2);
  AttentionPass pass;
  if (!find_pass(a, plan, Attention::kOutDims, pass, positions)) return;
  if (threadIdx.x == 0) not_finite[0] = not_finite[1] = 0;
  sync_block();
  Attention tile(a, plan, pass, {values, weights, query, maxima, sums, keys, positions, not_finite});

  const int first_block = pass.lowest / kKeyBlock, last_block = pass.highest / kKeyBlock;
  const int first_split = first_block / pass.span, last_split = last_block / pass.span;
  const int step = plan.partial ? plan.splits : 1;
  const int ahead = plan.partial ? (static_cast<int>(blockIdx.z) + step - first_split % step) % step : 0;
  int located = -1;
  typename Attention::Partial split, total;
  total.clear();
  for (int s = first_split + ahead; s <= last_split; s += step) {
    const int begin = s * pass.span, end = begin + pass.span;
    split.clear();
    for (int b = begin < first_block ? first_block : begin; b < end && b <= last_block; ++b) {
      if (b != located) {
        sync_block();
        tile.locate_keys(b);
        sync_block();
      }
      tile.add_keys(b, split);
      located = b + 1;
    }
    if (plan.partial)
      store_partial(tile, split, s);
    else
      tile.merge(total, split);
  }
  if (!plan.partial) store_result(tile, total);
}

// Merges the splits of every row as AttentionTile::merge does. One thread is one element.
GPU_KERNEL(kMergeThreads) void attention_merge_kernel(AttentionArgs a, AttentionPlan plan) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (at >= a.tokens * a.num_heads * a.head_dim) return;
  const int64_t d = at % a.head_dim, row = at / a.head_dim, head = row % a.num_heads,
                token = row / a.num_heads;
  const int position = a.positions[token];
  const int keys = split_blocks(plan, position) * kKeyBlock;
  const int first = first_visible(a, position) / keys, count = position / keys - first + 1;
  float m[kAttentionSplits], sum[kAttentionSplits], o[kAttentionSplits];  // all loads are under way at once
#pragma unroll
  for (int s = 0; s < kAttentionSplits; ++s)
    if (s < count) {
      const float* from = partial_of(a, plan, token, head, first + s);
      m[s] = from[0], sum[s] = from[1], o[s] = from[2 + d];
    }
  float maximum = -INFINITY, total = 0, result = 0;
#pragma unroll
  for (int s = 0; s < kAttentionSplits; ++s)
    if (s < count) {
      const MaxMerge by = merge_max(maximum, m[s]);
      maximum = by.max;
      total = by.add(total, sum[s]);
      result = by.add(result, o[s]);
    }
  const Normaliser n = normaliser(a, head, maximum, total);
  store_out(a, at, result * n.factor / n.total);
}

// bf16 products only where keys, values and results are rounded to bf16 anyway.
bool bf16_products(const AttentionArgs& a) { return a.kv.dtype == Dtype::bf16 && a.out_dtype == Dtype::bf16; }

AttentionPlan plan_attention(const AttentionArgs& a) {
  AttentionPlan p{};
  p.group = static_cast<int>(a.num_heads / a.num_kv_heads);
  p.heads_per_tile = p.group < 16 ? p.group : 16;
  p.tokens_per_tile = 16 / p.heads_per_tile;
  p.head_tiles = static_cast<int>(ceil_div(p.group, p.heads_per_tile));
  p.dim_tiles = static_cast<int>(ceil_div(
      a.head_dim, bf16_products(a) ? output_dims<bf16>(a.head_dim) : output_dims<float>(a.head_dim)));
  if (a.window > 0 && a.window <= kOneSplitWindow) {
    p.window_split = kOneSplit, p.splits = 1;
  } else if (a.window > 0) {
    // n consecutive blocks touch at most ceil((n - 1) / span) + 1 runs of span blocks, 16 here. No position
    // tells wider windows apart, whose splits would not fit 32 bits.
    const int64_t window = std::min<int64_t>(a.window, INT32_MAX);
    const int64_t blocks = (window - 2 + kKeyBlock) / kKeyBlock + 1;
    p.window_split = static_cast<int>(ceil_div(blocks, kAttentionSplits - 1)), p.splits = kAttentionSplits;
  } else {
    const int64_t capacity = static_cast<int64_t>(a.kv.blocks_per_slot) * a.kv.page_size;
    p.splits = static_cast<int>(std::min<int64_t>(ceil_div(capacity, kKeyBlock), kAttentionSplits));
  }
  p.partial = a.workspace && p.splits > 1 && a.tokens * a.num_kv_heads * p.head_tiles <= kFewItems;
  return p;
}

}  // namespace

void attention(Stream stream, const AttentionArgs& a) {
  TRIVIUM_CHECK(a.head_dim > 0 && a.head_dim <= 256 && a.head_dim % 2 == 0, "attention: head_dim is ",
                a.head_dim, ", expected an even number up to 256 on a GPU");
  const auto address = reinterpret_cast<uintptr_t>(a.kv.k) | reinterpret_cast<uintptr_t>(a.kv.v);
  TRIVIUM_CHECK(address % (2 * size_of(a.kv.dtype)) == 0, "attention: k is at ", a.kv.k, " and v at ", a.kv.v,
                ", expected addresses that are multiples of ", 2 * size_of(a.kv.dtype), " bytes");
  if (a.tokens == 0) return;
  const AttentionPlan plan = plan_attention(a);
  const auto run = [&](auto kernel) {
    launch(stream,
           {.grid = {a.tokens, a.num_kv_heads * plan.head_tiles * plan.dim_tiles,
                     plan.partial ? plan.splits : 1},
            .block = kAttentionThreads},
           kernel, a, plan);
  };
  if (bf16_products(a))
    run(a.head_dim <= 64 ? attention_kernel<bf16, bf16, 64> : attention_kernel<bf16, bf16, 256>);
  else
    dispatch_dtype<float, bf16>(a.kv.dtype, "attention", [&]<class KV>() {
      run(a.head_dim <= 64 ? attention_kernel<float, KV, 64> : attention_kernel<float, KV, 256>);
    });
  if (!plan.partial) return;
  const int64_t elements = a.tokens * a.num_heads * a.head_dim;
  launch(stream, {.grid = ceil_div(elements, kMergeThreads), .block = kMergeThreads}, attention_merge_kernel,
         a, plan);
}

}  // namespace trivium::TRIVIUM_GPU_NS
