// y = sigmoid(gate) * (w * (x - mean) / sqrt(var + eps) + bias), mean and var over each head (Ba et al.
// 2016).
#include "cuda/block.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kMaxThreads = 256;

GPU_DEVICE float element_of(const VectorView& v, int64_t i) {
  if (v.dtype == Dtype::bf16) return to_float(as<bf16>(v.data)[i]);
  if (v.dtype == Dtype::f16) return to_float(as<f16>(v.data)[i]);
  return as<float>(v.data)[i];
}

// One block a row and head. Mean first, then the squares around it: one pass over x^2 would cancel. Sums
// depend on `dim` alone.
template <class Y>
GPU_KERNEL(kMaxThreads)
void head_norm_kernel(HeadNormArgs a) {
  const int64_t row = blockIdx.x, head = blockIdx.y, offset = (row * a.heads + head) * a.dim;
  const float *x = a.x + offset, *gate = a.gate + row * a.gate_stride + head * a.dim;
  const auto size = static_cast<float>(a.dim);
  float sum = 0, squares = 0;
  for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) sum += x[d];
  const float mean = block_sum(sum) / size;
  for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) squares = fma(x[d] - mean, x[d] - mean, squares);
  const float inverse = 1.0f / sqrt(block_sum(squares) / size + a.eps);
  for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) {
    const int64_t at = head * a.dim + d;
    const float bias = a.bias.data ? element_of(a.bias, at) : 0.0f;
    const float normed = fma(element_of(a.w, at), (x[d] - mean) * inverse, bias);
    as<Y>(a.y)[offset + d] = from_float<Y>(1.0f / (1.0f + exp(-gate[d])) * normed);
  }
}

}  // namespace

void head_norm(Stream stream, const HeadNormArgs& a) {
  if (a.rows == 0) return;
  const int threads = static_cast<int>(a.dim >= kMaxThreads ? kMaxThreads : 64 * ceil_div(a.dim, 64));
  dispatch_dtype<float, bf16>(a.y_dtype, "head_norm", [&]<class Y>() {
    launch(stream, {.grid = {a.rows, a.heads}, .block = threads}, head_norm_kernel<Y>, a);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
