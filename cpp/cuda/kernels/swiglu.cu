// The clamped SwiGLU over rows of interleaved (gate, linear) pairs.
#include "cuda/swiglu.cuh"

#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 2;  // outputs a thread: 16 bytes of input

// Rows are contiguous in x and y, so the kernel sees one long row.
template <class T>
GPU_KERNEL(kElementwiseBlock)
void swiglu_kernel(SwigluArgs a, bool vectors) {
  const int64_t i = global_thread() * kGroup, left = a.rows * a.dim - i;
  if (left <= 0) return;
  const auto x = load_group<2 * kGroup>(a.x + 2 * i, 2 * left, vectors);
  Vec<T, kGroup> y;
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    y.x[j] = from_float<T>(swiglu_value(x.x[2 * j], x.x[2 * j + 1], a.alpha, a.limit));
  store_group(as<T>(a.y) + i, y, left, vectors);
}

}  // namespace

void swiglu(Stream stream, const SwigluArgs& a) {
  dispatch_dtype<float, bf16>(a.y_dtype, "swiglu", [&]<class T>() {
    launch(stream,
           {.grid = {ceil_div(a.rows * a.dim, kGroup * kElementwiseBlock)}, .block = kElementwiseBlock},
           swiglu_kernel<T>, a, vectors_fit(0, kGroup, a.x, a.y));
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
