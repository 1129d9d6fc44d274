// y = w * x / sqrt(mean(x^2) + eps) per row (Zhang & Sennrich 2019), after x += add when there is something
// to add.
#include "cuda/block.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 4;
constexpr int kMaxThreads = 512;

// One block a row. A thread takes the same groups of four in both passes, whether as vectors or one by one,
// so that the order of the sum depends on `dim` alone.
template <class X, class Y>
GPU_KERNEL(kMaxThreads)
void rms_norm_kernel(RmsNormArgs a, bool vectors) {
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * a.dim, step = kGroup * blockDim.x;
  X* x = as<X>(a.x) + offset;
  Y* y = as<Y>(a.y) + offset;
  float sum = 0;
  for (int64_t i = kGroup * threadIdx.x; i < a.dim; i += step) {
    auto v = load_group<kGroup>(x + i, a.dim - i, vectors);
    if constexpr (std::is_same_v<X, float>)
      if (a.add) {
        const auto more = load_group<kGroup>(a.add + offset + i, a.dim - i, vectors);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) v.x[j] += more.x[j];
        store_group(x + i, v, a.dim - i, vectors);
      }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum = fma(to_float(v.x[j]), to_float(v.x[j]), sum);
  }
  const float inverse = 1.0f / sqrt(block_sum(sum) / static_cast<float>(a.dim) + a.eps);
  const auto scale_by = [&](const auto* w) {
    for (int64_t i = kGroup * threadIdx.x; i < a.dim; i += step) {
      const auto v = load_group<kGroup>(x + i, a.dim - i, vectors);
      const auto gain = load_group<kGroup>(w + i, a.dim - i, vectors);
      Vec<Y, kGroup> out;
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        out.x[j] = from_float<Y>(to_float(v.x[j]) * inverse * to_float(gain.x[j]));
      store_group(y + i, out, a.dim - i, vectors);
    }
  };
  if (a.w.dtype == Dtype::bf16)
    scale_by(as<bf16>(a.w.data));
  else if (a.w.dtype == Dtype::f16)
    scale_by(as<f16>(a.w.data));
  else
    scale_by(as<float>(a.w.data));
}

// Threads that share a row evenly: whole warps, at most kMaxThreads.
int threads_for(int64_t dim) {
  const int64_t groups = ceil_div(dim, kGroup), passes = ceil_div(groups, kMaxThreads);
  return static_cast<int>(64 * ceil_div(ceil_div(groups, passes), 64));
}

}  // namespace

void rms_norm(Stream stream, const RmsNormArgs& a) {
  TRIVIUM_CHECK(!a.add || a.x_dtype == Dtype::f32, "rms_norm: adding to x needs float32, x is ", a.x_dtype);
  if (a.rows == 0) return;
  const bool vectors = vectors_fit(a.dim, kGroup, a.x, a.add, a.w.data, a.y);
  dispatch_dtype<float, bf16>(a.x_dtype, "rms_norm", [&]<class X>() {
    dispatch_dtype<float, bf16>(a.y_dtype, "rms_norm", [&]<class Y>() {
      launch(stream, {.grid = {a.rows}, .block = threads_for(a.dim)}, rms_norm_kernel<X, Y>, a, vectors);
    });
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
