// y[t, :] = table[ids[t], :] in float32.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kGroup = 4;

// One group of a row a thread; blockIdx.x is the token.
template <class T>
GPU_KERNEL(kElementwiseBlock)
void embedding_kernel(EmbeddingArgs a, bool vectors) {
  const int64_t token = blockIdx.x,
                i = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kGroup;
  if (i >= a.dim) return;
  const T* row = as<T>(a.table) + static_cast<int64_t>(a.ids[token]) * a.dim;
  const auto from = load_group<kGroup>(row + i, a.dim - i, vectors);
  Vec<float, kGroup> to;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) to.x[j] = to_float(from.x[j]);
  store_group(a.y + token * a.dim + i, to, a.dim - i, vectors);
}

}  // namespace

void embedding(Stream stream, const EmbeddingArgs& a) {
  dispatch_dtype<float, bf16, f16>(a.table_dtype, "embedding", [&]<class T>() {
    launch(stream,
           {.grid = {a.tokens, ceil_div(a.dim, kGroup * kElementwiseBlock)}, .block = kElementwiseBlock},
           embedding_kernel<T>, a, vectors_fit(a.dim, kGroup, a.table, a.y));
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
