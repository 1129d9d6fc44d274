// The one portability include of the kernels: built as CUDA, as HIP and, for tests, as plain C++ on the SIMT
// emulator with 32 or 64 lanes a warp. A kernel names no vendor; everything it may use is listed here, and
// each vendor header defines exactly this, in namespace trivium::TRIVIUM_GPU_NS (cuda, hip, emu32, emu64).
//
// threadIdx, blockIdx, blockDim and gridDim keep their names. Blocks are one-dimensional (y = z = 1), a
// multiple of 64 threads, at most 1024. Floating point is never contracted by the compiler: write fma() where
// it is meant, so that two kernels that share a formula give the same bits.
//
// Macros
//   GPU_KERNEL(max_threads)        a kernel: GPU_KERNEL(256) void name(args by value) { ... }
//   GPU_KERNEL(max_threads, blocks)  the same, with registers for `blocks` blocks at a time on an NVIDIA
//                                  processor. Without the number ptxas chooses it, and spills a few registers
//                                  where that lets one more block in.
//   GPU_DEVICE                     a forced-inline device function
//   GPU_SHARED(T, name, count)     static shared memory, 16-byte aligned; uninitialised; T trivial; usable
//                                  as T*
//   GPU_DYNAMIC_SHARED(T, name)    the launch's shared_bytes as T* (one per kernel, 16-byte aligned)
//
// Lanes. Every lane of `mask` calls the function at the same place; the mask defaults to the whole warp.
//   kWarpSize                      32 or 64; device code only: never in a template argument or a signature
//                                  of a kernel, because the host pass does not know it
//   LaneMask, full_mask()
//   lane_id(), warp_id(), num_warps()
//   shfl(v, lane), shfl_xor(v, lane_mask), shfl_up(v, n), shfl_down(v, n)
//                                  T of 4 or 8 bytes; outside: own value
//   ballot(p) -> LaneMask, any(p), all(p)
//   sync_warp(), sync_block()      order shared memory too
//
// Memory
//   Vec<T, N>                      struct { T x[N]; }, aligned to its size (at most 16 bytes)
//   load_vec<N>(const T*), store_vec(T*, Vec<T, N>)     aligned; global or shared
//   load_stream<N>(const T*)       the same for global memory that is read once (weights)
//   async_copy16(shared, global, valid)  16 bytes, in the background; !valid writes zeros and reads nothing
//   async_commit(), async_wait<N>()      closes a group; waits until at most N groups are under way, for the
//                                  caller's own copies (sync_block() then makes all threads' copies visible)
//   atomic_add(int32_t* | uint32_t* | uint64_t* | int64_t* | float*, v) -> old value
//   atomic_max(int32_t* | uint32_t* | uint64_t*, v) -> old value
//   atomic_cas(uint32_t* | uint64_t*, expected, v) -> old value
//
// Arithmetic (float): fma, sqrt, rsqrt, abs, floor, min, max (the other one when one is NaN), exp and log
//   (2 ulp or so), fast_exp (relative error 1e-6), fast_rcp; also fma(double...), min and max of two integers
//   of one type, isnan(x), popcount(LaneMask).
// mul_bf16x2(uint32_t a, uint32_t b)  products of two pairs of bf16; only for products that bf16 can hold or
//   that overflow, so that all ways to round are one
// zip_bytes<I>(uint32_t a, uint32_t b)  byte I of a in the low half, of b in the high half; both below 128
//
// Host
//   Stream                         = StreamHandle*, never null here
//   launch(stream, {.grid = n, .block = 256, .shared_bytes = 0}, kernel<T>, args...)
//                                  asynchronous; grid is {x, y, z} (x < 2^31, y and z < 2^16); an empty grid
//                                  does nothing; arguments are copied; a launch that fails is a DeviceError
#pragma once

#include <concepts>
#include <cstdint>

#include "core/backend.h"
#include "core/dtype.h"
#include "core/half.h"
#include "ops/args.h"

#if defined(TRIVIUM_GPU_EMU)
#include "emu/vendor_emu.h"
#elif defined(TRIVIUM_GPU_HIP)
#include "hip/vendor_hip.h"
#else
#include "cuda/vendor_cuda.cuh"
#endif

namespace trivium::TRIVIUM_GPU_NS {

// Beside the vendor's for floats.
template <std::integral T>
GPU_DEVICE T min(T a, T b) {
  return b < a ? b : a;
}
template <std::integral T>
GPU_DEVICE T max(T a, T b) {
  return a < b ? b : a;
}
// Two different integer types must not meet as floats.
template <std::integral A, std::integral B>
  requires(!std::same_as<A, B>)
A min(A, B) = delete;
template <std::integral A, std::integral B>
  requires(!std::same_as<A, B>)
A max(A, B) = delete;

template <class T>
GPU_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(x);
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(x);
  else
    return x;
}

template <class T>
TRIVIUM_INLINE const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
TRIVIUM_INLINE T* as(void* p) {
  return static_cast<T*>(p);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace trivium::TRIVIUM_GPU_NS
