// to[i] = from[i] among float32, bfloat16, float16 and float64, each rounded once to nearest even.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

template <class To, class From>
GPU_DEVICE To convert_value(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, double>)
    return static_cast<double>(to_float(x));
  else if constexpr (!std::is_same_v<From, double>)
    return from_float<To>(to_float(x));
  else if constexpr (std::is_same_v<To, float>)
    return static_cast<float>(x);
  else
    return from_float<To>(round_to_odd(x));
}

// One group of N elements a thread.
template <class From, class To, int N>
GPU_KERNEL(kElementwiseBlock)
void convert_kernel(ConvertArgs a, bool vectors) {
  const int64_t i = global_thread() * N;
  if (i >= a.count) return;
  const auto from = load_group<N>(as<From>(a.from) + i, a.count - i, vectors);
  Vec<To, N> to;
#pragma unroll
  for (int j = 0; j < N; ++j) to.x[j] = convert_value<To>(from.x[j]);
  store_group(as<To>(a.to) + i, to, a.count - i, vectors);
}

}  // namespace

void convert(Stream stream, const ConvertArgs& a) {
  dispatch_dtype<float, bf16, f16, double>(a.from_dtype, "convert", [&]<class From>() {
    dispatch_dtype<float, bf16, f16, double>(a.to_dtype, "convert", [&]<class To>() {
      constexpr int kGroup = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
      launch(stream, {.grid = {ceil_div(a.count, kGroup * kElementwiseBlock)}, .block = kElementwiseBlock},
             convert_kernel<From, To, kGroup>, a, vectors_fit(0, kGroup, a.from, a.to));
    });
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
