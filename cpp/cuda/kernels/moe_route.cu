// The top_k largest logits of each token (ties: lower index) and the softmax over them.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "cuda/rank.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kLanes = 32;    // threads of a token: a warp, or half of one where warps have 64 lanes
constexpr int kThreads = 64;  // few, so that a decode step's tokens spread over the device

// Each round finds the first candidate behind the last one taken, so that nothing is marked or stored; the
// logits of a few hundred experts stay in the first-level cache.
GPU_KERNEL(kThreads) void moe_route_kernel(MoeRouteArgs a) {
  const int64_t place = global_thread() / kLanes;
  const int64_t token = place < a.tokens ? place : a.tokens - 1;  // all lanes of a warp take part in shuffles
  const bool writes = place < a.tokens && threadIdx.x % kLanes == 0;
  const float* logits = a.logits + token * a.num_experts;
  int32_t* experts = a.experts + token * a.top_k;
  float* weights = a.weights + token * a.top_k;
  uint64_t from = 0;  // keys below it are taken
  float maximum = 0, sum = 0;
  for (int64_t k = 0; k < a.top_k; ++k) {
    uint64_t best = ~uint64_t{0};
    for (int64_t e = threadIdx.x % kLanes; e < a.num_experts; e += kLanes) {
      const uint64_t key = rank_key(logits[e], static_cast<uint32_t>(e));
      if (key >= from && key < best) best = key;
    }
    for (int m = 1; m < kLanes; m *= 2) {
      const uint64_t other = shfl_xor(best, m);
      if (other < best) best = other;
    }
    from = best + 1;
    const float logit = logits[index_of_key(best)];
    if (k == 0) maximum = logit;
    const float weight = exp(logit - maximum);
    sum += weight;
    if (writes) experts[k] = static_cast<int32_t>(index_of_key(best)), weights[k] = weight;
  }
  if (writes)
    for (int64_t k = 0; k < a.top_k; ++k) weights[k] /= sum;
}

}  // namespace

void moe_route(Stream stream, const MoeRouteArgs& a) {
  launch(stream, {.grid = {ceil_div(a.tokens * kLanes, kThreads)}, .block = kThreads}, moe_route_kernel, a);
}

}  // namespace trivium::TRIVIUM_GPU_NS
