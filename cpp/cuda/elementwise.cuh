// What the memory-bound kernels share: groups of N consecutive elements, as one access where the address
// allows it.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kElementwiseBlock = 256;

GPU_DEVICE int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Whether groups of `group` elements of rows of `dim` may be read and written as vectors from every pointer
// given.
template <class... Pointers>
bool vectors_fit(int64_t dim, int64_t group, Pointers... pointers) {
  return dim % group == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// p[0 .. N - 1]; elements from `left` on are zeros and not read.
template <int N, class T>
GPU_DEVICE Vec<T, N> load_group(const T* p, int64_t left, bool vectors) {
  if (vectors && left >= N) return load_vec<N>(p);
  Vec<T, N> v{};
  for (int i = 0; i < N; ++i)
    if (i < left) v.x[i] = p[i];
  return v;
}

template <int N, class T>
GPU_DEVICE void store_group(T* p, const Vec<T, N>& v, int64_t left, bool vectors) {
  if (vectors && left >= N) return store_vec(p, v);
  for (int i = 0; i < N; ++i)
    if (i < left) p[i] = v.x[i];
}

}  // namespace trivium::TRIVIUM_GPU_NS
