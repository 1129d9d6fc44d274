// Rotary embedding (Su et al. 2021, half-split pairs): the table of cosines and sines, rotation in place, and
// the fused rotation of q and k with the write of k and v to the paged cache. One thread is one pair of
// elements; the products are not fused, so that a GPU rotates exactly as the CPU does.
#include "cuda/gpu.cuh"
#include "cuda/kernels.h"
#include "cuda/sincos.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kThreads = 256;

GPU_KERNEL(kThreads) void rope_table_kernel(RopeTableArgs a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.tokens * a.pairs) return;
  const SinCos v = sincos(a.positions[at / a.pairs] * a.inv_freq[at % a.pairs]);
  store_vec(a.table + 2 * at, Vec<float, 2>{{static_cast<float>(v.cos * a.concentration),
                                             static_cast<float>(v.sin * a.concentration)}});
}

// (x[i], x[i + half]) turned by the angle of pair i.
GPU_DEVICE Vec<float, 2> rotated(const float* x, const float* table, int64_t i, int64_t half) {
  const Vec<float, 2> t = load_vec<2>(table + 2 * i);
  const float c = t.x[0], s = t.x[1], a = x[i], b = x[i + half];
  return {{a * c - b * s, b * c + a * s}};
}

GPU_KERNEL(kThreads) void rope_kernel(RopeArgs a) {
  const int64_t half = a.head_dim / 2, per_token = a.heads * half;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.tokens * per_token) return;
  const int64_t token = at / per_token, head = at % per_token / half, i = at % half;
  float* x = a.x + token * a.x_stride + head * a.head_dim;
  const Vec<float, 2> y = rotated(x, a.table + token * a.head_dim, i, half);
  x[i] = y.x[0], x[i + half] = y.x[1];
}

// Block (token, part of its pairs). Heads are counted through q, k and v.
template <class T>
GPU_KERNEL(kThreads)
void rope_kv_kernel(RopeKvArgs a) {
  const int64_t half = a.head_dim / 2, heads = a.num_heads + 2 * a.num_kv_heads, token = blockIdx.x;
  const int at = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  const int64_t head = at / static_cast<int>(half), i = at % static_cast<int>(half);
  const int position = a.positions[token];
  if (head >= heads) return;
  float* x = a.qkv + (token * heads + head) * a.head_dim;
  Vec<float, 2> y{{x[i], x[i + half]}};
  const bool is_value = head >= a.num_heads + a.num_kv_heads;
  if (!is_value) y = rotated(x, a.table + token * a.head_dim, i, half);
  if (head < a.num_heads) {
    x[i] = y.x[0], x[i + half] = y.x[1];
    return;
  }
  const int64_t kv_head = head - a.num_heads - (is_value ? a.num_kv_heads : 0);
  const int32_t* pages = a.kv.block_table + static_cast<int64_t>(a.slots[token]) * a.kv.blocks_per_slot;
  const int64_t page = pages[position / a.kv.page_size % a.kv.blocks_per_slot];
  T* to = as<T>(is_value ? a.kv.v : a.kv.k) +
          ((page * a.num_kv_heads + kv_head) * a.kv.page_size + position % a.kv.page_size) * a.head_dim;
  to[i] = from_float<T>(y.x[0]), to[i + half] = from_float<T>(y.x[1]);
}

}  // namespace

void rope_table(Stream stream, const RopeTableArgs& a) {
  launch(stream, {.grid = ceil_div(a.tokens * a.pairs, kThreads), .block = kThreads}, rope_table_kernel, a);
}

void rope(Stream stream, const RopeArgs& a) {
  const int64_t pairs = a.tokens * a.heads * (a.head_dim / 2);
  launch(stream, {.grid = ceil_div(pairs, kThreads), .block = kThreads}, rope_kernel, a);
}

void rope_kv(Stream stream, const RopeKvArgs& a) {
  const int64_t pairs = (a.num_heads + 2 * a.num_kv_heads) * (a.head_dim / 2);
  dispatch_dtype<float, bf16>(a.kv.dtype, "rope_kv", [&]<class T>() {
    launch(stream, {.grid = {a.tokens, ceil_div(pairs, kThreads)}, .block = kThreads}, rope_kv_kernel<T>, a);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
