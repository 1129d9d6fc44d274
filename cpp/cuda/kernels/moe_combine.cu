// x[t] += sum_k weights[t, k] * y[row_of_choice[t, k]], k in order.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 4;

// One group of a token's row a thread; blockIdx.x is the token.
GPU_KERNEL(kElementwiseBlock) void moe_combine_kernel(MoeCombineArgs a, bool vectors) {
  const int64_t token = blockIdx.x,
                i = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kGroup;
  if (i >= a.hidden) return;
  float* x = a.x + token * a.hidden + i;
  auto sum = load_group<kGroup>(x, a.hidden - i, vectors);
  for (int64_t k = 0; k < a.top_k; ++k) {
    const float weight = a.weights[token * a.top_k + k];
    const int64_t row = a.row_of_choice[token * a.top_k + k];
    const auto y = load_group<kGroup>(a.y + row * a.hidden + i, a.hidden - i, vectors);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum.x[j] += weight * y.x[j];
  }
  store_group(x, sum, a.hidden - i, vectors);
}

}  // namespace

void moe_combine(Stream stream, const MoeCombineArgs& a) {
  launch(stream,
         {.grid = {a.tokens, ceil_div(a.hidden, kGroup * kElementwiseBlock)}, .block = kElementwiseBlock},
         moe_combine_kernel, a, vectors_fit(a.hidden, kGroup, a.x, a.y));
}

}  // namespace trivium::TRIVIUM_GPU_NS
