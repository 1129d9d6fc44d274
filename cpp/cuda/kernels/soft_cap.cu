// x = cap tanh(x / cap) in place.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "cuda/tanh.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 4;

GPU_KERNEL(kElementwiseBlock)
void soft_cap_kernel(SoftCapArgs a, bool vectors) {
  const int64_t i = global_thread() * kGroup, left = a.count - i;
  if (left <= 0) return;
  auto x = load_group<kGroup>(a.x + i, left, vectors);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) x.x[j] = soft_capped(x.x[j], a.cap);
  store_group(a.x + i, x, left, vectors);
}

}  // namespace

void soft_cap(Stream stream, const SoftCapArgs& a) {
  launch(stream, {.grid = {ceil_div(a.count, kGroup * kElementwiseBlock)}, .block = kElementwiseBlock},
         soft_cap_kernel, a, vectors_fit(0, kGroup, a.x));
}

}  // namespace trivium::TRIVIUM_GPU_NS
