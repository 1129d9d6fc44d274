// Which shape of gemm.cuh a product is launched in. The choice never changes a result.
#pragma once

#include "cuda/gemm_kernels.cuh"

namespace trivium::TRIVIUM_GPU_NS {

// Upper bound of the row blocks; how many there are is known on the device only.
inline int64_t row_blocks(const GemmArgs& a, int64_t size) {
  return a.offsets ? a.m / size + (a.m < a.num_experts ? a.m : a.num_experts) : ceil_div(a.m, size);
}

template <class T, class W, bool kSwiglu, int kRowTiles, int kColTiles>
void launch_split(Stream stream, const GemmArgs& a) {
  constexpr int kRows = 16 * kRowTiles, kCols = 16 * kColTiles;
  const int64_t chunks = a.k ? ceil_div(a.k, chunk_size(a.k)) : 0;
  // A warp of 32 for each chunk, an even number of them.
  const int threads = chunks > 2 ? 64 * static_cast<int>(ceil_div(chunks, 2)) : 64;
  launch(stream,
         {.grid = {row_blocks(a, kRows), ceil_div(a.n, kCols)},
          .block = threads,
          .shared_bytes = chunks * kRows * kCols * int64_t{sizeof(float)}},
         gemm_split_kernel<T, W, kSwiglu, kRowTiles, kColTiles>, a);
}

// Blocks of 64 rows pay when an expert has more than a few rows and a dense layer still gives most
// multiprocessors a block; otherwise weights are read by as many warps as possible.
inline bool wants_row_blocks(const GemmArgs& a) {
  if (a.offsets) return a.m > 8 * a.num_experts;
  return a.m > 32 && ceil_div(a.m, kBlockRows) * ceil_div(a.n, kBlockCols) >= 96;
}

// A warp with 32 columns reads x half as often as one with 16, which counts where weights have 4 bits. It
// pays once there are enough blocks to keep all multiprocessors busy to the end.
inline bool wants_wide_warps(const GemmArgs& a) { return row_blocks(a, 16) * ceil_div(a.n, 32) >= 1024; }

template <class T, class W, bool kSwiglu>
void launch_gemm(Stream stream, const GemmArgs& a) {
  if constexpr (std::is_same_v<T, bf16> && !std::is_same_v<W, AnyFormat>) {
    if (wants_row_blocks(a))
      return launch(stream,
                    {.grid = {row_blocks(a, kBlockRows), ceil_div(a.n, kBlockCols)}, .block = kBlockThreads},
                    gemm_block_kernel<T, W, kSwiglu>, a);
    if constexpr (!kSwiglu)
      if (!a.offsets && a.m > 16) return launch_split<T, W, kSwiglu, 2, 1>(stream, a);
    if constexpr (std::is_same_v<W, Mxfp4>)
      if (wants_wide_warps(a)) return launch_split<T, W, kSwiglu, 1, 2>(stream, a);
  }
  launch_split<T, W, kSwiglu, 1, 1>(stream, a);
}

// Whether every 8 columns of a row lie at a multiple of 16 bytes.
template <class T>
bool is_aligned(const GemmArgs& a) {
  const auto misplaced = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
  return a.k % 8 == 0 && a.x_stride * int64_t{sizeof(T)} % 16 == 0 && !misplaced(a.x) && !misplaced(a.w.data);
}

template <bool kSwiglu>
void gemm(Stream stream, const GemmArgs& a, Dtype dtype, const char* what) {
  constexpr int64_t kMaxColumns = 65535 * 16;
  TRIVIUM_CHECK(a.k < INT32_MAX - 2 * kStep && a.n <= kMaxColumns, what, ": w is [", a.n, ", ", a.k,
                "], expected at most ", kMaxColumns, " rows of 2^31 columns");
  dispatch_dtype<float, bf16>(dtype, what, [&]<class T>() {
    if (!is_aligned<T>(a))
      launch_gemm<T, AnyFormat, kSwiglu>(stream, a);
    else if (a.w.format == WeightFormat::f32)
      launch_gemm<T, float, kSwiglu>(stream, a);
    else if (a.w.format == WeightFormat::bf16)
      launch_gemm<T, bf16, kSwiglu>(stream, a);
    else if (a.w.format == WeightFormat::f16)
      launch_gemm<T, f16, kSwiglu>(stream, a);
    else
      launch_gemm<T, Mxfp4, kSwiglu>(stream, a);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
