// y = x[:, :dim] * sigmoid(x[:, :dim]) * x[:, dim:] (Shazeer 2020).
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 4;

// One row of groups after the other; the last group of a row may be short.
template <class Y>
GPU_KERNEL(kElementwiseBlock)
void silu_mul_kernel(SiluMulArgs a, int64_t groups, bool vectors) {
  const int64_t at = global_thread(), row = at / groups, d = at % groups * kGroup, left = a.dim - d;
  if (row >= a.rows) return;
  const float* gates = a.x + row * 2 * a.dim + d;
  const auto gate = load_group<kGroup>(gates, left, vectors),
             up = load_group<kGroup>(gates + a.dim, left, vectors);
  Vec<Y, kGroup> y;
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    y.x[j] = from_float<Y>(gate.x[j] * (1.0f / (1.0f + exp(-gate.x[j]))) * up.x[j]);
  store_group(as<Y>(a.y) + row * a.dim + d, y, left, vectors);
}

}  // namespace

void silu_mul(Stream stream, const SiluMulArgs& a) {
  const int64_t groups = ceil_div(a.dim, kGroup);
  dispatch_dtype<float, bf16>(a.y_dtype, "silu_mul", [&]<class Y>() {
    launch(stream, {.grid = {ceil_div(a.rows * groups, kElementwiseBlock)}, .block = kElementwiseBlock},
           silu_mul_kernel<Y>, a, groups, vectors_fit(a.dim, kGroup, a.x, a.y));
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
