// NVIDIA names for cuda/gpu.cuh, which documents everything here. sm_80 and later.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#define TRIVIUM_GPU_NS cuda

#define GPU_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
#define GPU_DEVICE __device__ __forceinline__
#define GPU_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define GPU_DYNAMIC_SHARED(T, name)                               \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)

#include "cuda/launch.h"

namespace trivium::TRIVIUM_GPU_NS {

// Lanes.

inline constexpr int kWarpSize = 32;
using LaneMask = uint32_t;
GPU_DEVICE LaneMask full_mask() { return ~LaneMask{0}; }

GPU_DEVICE int lane_id() { return static_cast<int>(threadIdx.x % kWarpSize); }
GPU_DEVICE int warp_id() { return static_cast<int>(threadIdx.x / kWarpSize); }
GPU_DEVICE int num_warps() { return static_cast<int>(blockDim.x / kWarpSize); }

// The value as the integer that the shuffles move.
template <class T>
using ShuffleWord = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;

template <class T>
GPU_DEVICE ShuffleWord<T> shuffle_word(T v) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __builtin_bit_cast(ShuffleWord<T>, v);
}

template <class T>
GPU_DEVICE T shfl(T v, int lane, LaneMask mask = full_mask()) {
  const int from = static_cast<unsigned>(lane) < kWarpSize ? lane : lane_id();
  return __builtin_bit_cast(T, __shfl_sync(mask, shuffle_word(v), from));
}
template <class T>
GPU_DEVICE T shfl_xor(T v, int lane_mask, LaneMask mask = full_mask()) {
  return __builtin_bit_cast(T, __shfl_xor_sync(mask, shuffle_word(v), lane_mask));
}
template <class T>
GPU_DEVICE T shfl_up(T v, int n, LaneMask mask = full_mask()) {
  return __builtin_bit_cast(T, __shfl_up_sync(mask, shuffle_word(v), static_cast<unsigned>(n)));
}
template <class T>
GPU_DEVICE T shfl_down(T v, int n, LaneMask mask = full_mask()) {
  return __builtin_bit_cast(T, __shfl_down_sync(mask, shuffle_word(v), static_cast<unsigned>(n)));
}

GPU_DEVICE LaneMask ballot(bool p, LaneMask mask = full_mask()) { return __ballot_sync(mask, p); }
GPU_DEVICE bool any(bool p, LaneMask mask = full_mask()) { return __any_sync(mask, p) != 0; }
GPU_DEVICE bool all(bool p, LaneMask mask = full_mask()) { return __all_sync(mask, p) != 0; }
GPU_DEVICE int popcount(LaneMask mask) { return __popc(mask); }

GPU_DEVICE void sync_warp(LaneMask mask = full_mask()) { __syncwarp(mask); }
GPU_DEVICE void sync_block() { __syncthreads(); }

// Memory.

template <class T, int N>
struct alignas(N * sizeof(T)) Vec {
  static_assert(N * sizeof(T) <= 16 && (N & (N - 1)) == 0);
  T x[N];
};

// The machine word of 1 to 16 bytes.
template <int kBytes>
struct MemoryWord;
template <>
struct MemoryWord<1> {
  using type = unsigned char;
};
template <>
struct MemoryWord<2> {
  using type = unsigned short;
};
template <>
struct MemoryWord<4> {
  using type = unsigned;
};
template <>
struct MemoryWord<8> {
  using type = uint2;
};
template <>
struct MemoryWord<16> {
  using type = uint4;
};

template <int N, class T>
GPU_DEVICE Vec<T, N> load_vec(const T* p) {
  using Word = typename MemoryWord<N * sizeof(T)>::type;
  return __builtin_bit_cast(Vec<T, N>, *reinterpret_cast<const Word*>(p));
}
template <class T, int N>
GPU_DEVICE void store_vec(T* p, Vec<T, N> v) {
  using Word = typename MemoryWord<N * sizeof(T)>::type;
  *reinterpret_cast<Word*>(p) = __builtin_bit_cast(Word, v);
}
template <int N, class T>
GPU_DEVICE Vec<T, N> load_stream(const T* p) {
  using Word = typename MemoryWord<N * sizeof(T)>::type;
  Word w;
  if constexpr (sizeof(Word) == 16)
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
        : "l"(__cvta_generic_to_global(p)));
  else
    w = __ldcs(reinterpret_cast<const Word*>(p));
  return __builtin_bit_cast(Vec<T, N>, w);
}

GPU_DEVICE void async_copy16(void* shared, const void* global, bool valid = true) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;  // the rest of the 16 is zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
GPU_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
GPU_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

GPU_DEVICE int32_t atomic_add(int32_t* p, int32_t v) { return atomicAdd(p, v); }
GPU_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
GPU_DEVICE float atomic_add(float* p, float v) { return atomicAdd(p, v); }
GPU_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), v);
}
GPU_DEVICE int64_t atomic_add(int64_t* p, int64_t v) {
  return static_cast<int64_t>(atomic_add(reinterpret_cast<uint64_t*>(p), static_cast<uint64_t>(v)));
}
GPU_DEVICE int32_t atomic_max(int32_t* p, int32_t v) { return atomicMax(p, v); }
GPU_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v) { return atomicMax(p, v); }
GPU_DEVICE uint64_t atomic_max(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), v);
}
GPU_DEVICE uint32_t atomic_cas(uint32_t* p, uint32_t expected, uint32_t v) {
  return atomicCAS(p, expected, v);
}
GPU_DEVICE uint64_t atomic_cas(uint64_t* p, uint64_t expected, uint64_t v) {
  return atomicCAS(reinterpret_cast<unsigned long long*>(p), expected, v);
}

// Arithmetic.

GPU_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
GPU_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
GPU_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }
GPU_DEVICE float rsqrt(float x) { return ::rsqrtf(x); }
GPU_DEVICE float abs(float x) { return ::fabsf(x); }
GPU_DEVICE float floor(float x) { return ::floorf(x); }
GPU_DEVICE float min(float a, float b) { return ::fminf(a, b); }
GPU_DEVICE float max(float a, float b) { return ::fmaxf(a, b); }
GPU_DEVICE float exp(float x) { return ::expf(x); }
GPU_DEVICE float log(float x) { return ::logf(x); }
GPU_DEVICE bool isnan(float x) { return x != x; }

// 2^(x log2 e): what the rounded product lacks is put back, so that the error does not grow with |x|.
GPU_DEVICE float fast_exp(float x) {
  constexpr float kLog2e = 1.44269502162933349609375f, kLog2eRest = 1.925963033500149e-8f,
                  kLn2 = 0.693147181f;
  const float power = x * kLog2e;
  const float rest = fma(x, kLog2eRest, fma(x, kLog2e, -power));
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(power));
  return abs(power) < 150.0f ? fma(y * kLn2, rest, y) : y;  // beyond, the rest may be inf - inf
}
GPU_DEVICE float fast_rcp(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <int I>
GPU_DEVICE uint32_t zip_bytes(uint32_t a, uint32_t b) {
  uint32_t y;  // selector 8 + i: eight copies of byte i's sign, which is 0
  asm("prmt.b32 %0, %1, %2, %3;"
      : "=r"(y)
      : "r"(a), "r"(b), "n"(I | (I + 8) << 4 | (I + 4) << 8 | (I + 12) << 12));
  return y;
}
GPU_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t y;  // a b - 0: a product alone needs sm_90
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(0x80008000u));
  return y;
}

}  // namespace trivium::TRIVIUM_GPU_NS
