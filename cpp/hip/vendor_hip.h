// AMD names for cuda/gpu.cuh, which documents everything here. Written for a stock clang without ROCm:
// attributes, thread ids, barriers and arithmetic come from the compiler's own builtins, and no device
// library is linked. Waves have 64 lanes on GFX9 (CDNA) and 32 on gfx10-12.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#define TRIVIUM_GPU_NS hip

#define GPU_KERNEL(max_threads, ...) __attribute__((global, amdgpu_flat_work_group_size(1, max_threads)))
#define GPU_DEVICE __attribute__((device, always_inline)) inline
#define GPU_SHARED(T, name, count) __attribute__((shared, aligned(16))) T name[count]
#define GPU_DYNAMIC_SHARED(T, name)                                           \
  extern __attribute__((shared, aligned(16))) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)

#include "cuda/launch.h"

// The host side of a kernel, which clang generates, calls it: defined in hip_shim.cpp.
struct dim3 {
  uint32_t x, y, z;
};
extern "C" int hipLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, void* stream);

namespace trivium::TRIVIUM_GPU_NS {

// Positions in the launch; y and z of blocks are 1. Read by name: threadIdx.x, blockIdx.y, ...
struct ThreadIndex {
  struct X {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_workitem_id_x(); }
  } x;
};
struct BlockIndex {
  struct X {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_workgroup_id_x(); }
  } x;
  struct Y {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_workgroup_id_y(); }
  } y;
  struct Z {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_workgroup_id_z(); }
  } z;
};
struct BlockDim {
  struct X {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_workgroup_size_x(); }
  } x;
};
struct GridDim {  // in blocks; the launch is a whole number of them
  struct X {
    GPU_DEVICE operator unsigned() const {
      return __builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x();
    }
  } x;
  struct Y {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_grid_size_y(); }
  } y;
  struct Z {
    GPU_DEVICE operator unsigned() const { return __builtin_amdgcn_grid_size_z(); }
  } z;
};
inline constexpr ThreadIndex threadIdx{};
inline constexpr BlockIndex blockIdx{};
inline constexpr BlockDim blockDim{};
inline constexpr GridDim gridDim{};

// Lanes. The host pass, which only reads kernels, takes 64.

#if !defined(__HIP_DEVICE_COMPILE__) || defined(__GFX9__)
inline constexpr int kWarpSize = 64;
#else
inline constexpr int kWarpSize = 32;
#endif
using LaneMask = uint64_t;
GPU_DEVICE LaneMask full_mask() { return ~LaneMask{0} >> (64 - kWarpSize); }

GPU_DEVICE int lane_id() { return static_cast<int>(threadIdx.x % kWarpSize); }
GPU_DEVICE int warp_id() { return static_cast<int>(threadIdx.x / kWarpSize); }
GPU_DEVICE int num_warps() { return static_cast<int>(blockDim.x / kWarpSize); }

template <class T>
GPU_DEVICE T shfl(T v, int lane, LaneMask = full_mask()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const int from = 4 * (static_cast<unsigned>(lane) < kWarpSize ? lane : lane_id());
  if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(T, __builtin_amdgcn_ds_bpermute(from, __builtin_bit_cast(int, v)));
  } else {
    struct Halves {
      int x[2];
    } h = __builtin_bit_cast(Halves, v);
    h.x[0] = __builtin_amdgcn_ds_bpermute(from, h.x[0]);
    h.x[1] = __builtin_amdgcn_ds_bpermute(from, h.x[1]);
    return __builtin_bit_cast(T, h);
  }
}
template <class T>
GPU_DEVICE T shfl_xor(T v, int lane_mask, LaneMask mask = full_mask()) {
  return shfl(v, lane_id() ^ lane_mask, mask);
}
template <class T>
GPU_DEVICE T shfl_up(T v, int n, LaneMask mask = full_mask()) {
  return shfl(v, lane_id() - n, mask);
}
template <class T>
GPU_DEVICE T shfl_down(T v, int n, LaneMask mask = full_mask()) {
  return shfl(v, lane_id() + n, mask);
}

GPU_DEVICE LaneMask ballot(bool p, LaneMask mask = full_mask()) {
#if !defined(__HIP_DEVICE_COMPILE__)
  return p ? mask : 0;  // never run
#elif defined(__GFX9__)
  return __builtin_amdgcn_ballot_w64(p) & mask;
#else
  return __builtin_amdgcn_ballot_w32(p) & mask;
#endif
}
GPU_DEVICE bool any(bool p, LaneMask mask = full_mask()) { return ballot(p, mask) != 0; }
GPU_DEVICE bool all(bool p, LaneMask mask = full_mask()) { return ballot(!p, mask) == 0; }
GPU_DEVICE int popcount(LaneMask mask) { return __builtin_popcountll(mask); }

// Lanes of a wave run in step, but their shared-memory accesses must still be kept in order.
GPU_DEVICE void sync_warp(LaneMask = full_mask()) {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}
GPU_DEVICE void sync_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Memory.

template <class T, int N>
struct alignas(N * sizeof(T)) Vec {
  static_assert(N * sizeof(T) <= 16 && (N & (N - 1)) == 0);
  T x[N];
};

// The machine word of 1 to 16 bytes, which may overlay any type.
template <int kBytes>
struct MemoryWord;
template <>
struct MemoryWord<1> {
  using type = uint8_t;
};
template <>
struct MemoryWord<2> {
  using type = uint16_t __attribute__((may_alias));
};
template <>
struct MemoryWord<4> {
  using type = uint32_t __attribute__((may_alias));
};
template <>
struct MemoryWord<8> {
  using type = uint32_t __attribute__((ext_vector_type(2), may_alias));
};
template <>
struct MemoryWord<16> {
  using type = uint32_t __attribute__((ext_vector_type(4), may_alias));
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
  return __builtin_bit_cast(Vec<T, N>, __builtin_nontemporal_load(reinterpret_cast<const Word*>(p)));
}

// None of the targets copies 16 bytes to shared memory in the background: the copy is done at once.
GPU_DEVICE void async_copy16(void* shared, const void* global, bool valid = true) {
  Vec<uint32_t, 4> v{};
  if (valid) v = load_vec<4>(static_cast<const uint32_t*>(global));
  store_vec(static_cast<uint32_t*>(shared), v);
}
GPU_DEVICE void async_commit() {}
template <int N>
GPU_DEVICE void async_wait() {}

template <class T>
GPU_DEVICE T atomic_add_of(T* p, T v) {
  return __hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
template <class T>
GPU_DEVICE T atomic_max_of(T* p, T v) {
  return __hip_atomic_fetch_max(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
template <class T>
GPU_DEVICE T atomic_cas_of(T* p, T expected, T v) {
  __hip_atomic_compare_exchange_strong(p, &expected, v, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                       __HIP_MEMORY_SCOPE_AGENT);
  return expected;
}
GPU_DEVICE int32_t atomic_add(int32_t* p, int32_t v) { return atomic_add_of(p, v); }
GPU_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomic_add_of(p, v); }
GPU_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t v) { return atomic_add_of(p, v); }
GPU_DEVICE int64_t atomic_add(int64_t* p, int64_t v) { return atomic_add_of(p, v); }
GPU_DEVICE float atomic_add(float* p, float v) { return atomic_add_of(p, v); }
GPU_DEVICE int32_t atomic_max(int32_t* p, int32_t v) { return atomic_max_of(p, v); }
GPU_DEVICE uint32_t atomic_max(uint32_t* p, uint32_t v) { return atomic_max_of(p, v); }
GPU_DEVICE uint64_t atomic_max(uint64_t* p, uint64_t v) { return atomic_max_of(p, v); }
GPU_DEVICE uint32_t atomic_cas(uint32_t* p, uint32_t expected, uint32_t v) {
  return atomic_cas_of(p, expected, v);
}
GPU_DEVICE uint64_t atomic_cas(uint64_t* p, uint64_t expected, uint64_t v) {
  return atomic_cas_of(p, expected, v);
}

// Arithmetic. The compiler expands the builtins itself, correctly rounded (fma, sqrt) or within 1 ulp (exp,
// log).

GPU_DEVICE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GPU_DEVICE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
GPU_DEVICE float sqrt(float x) { return __builtin_sqrtf(x); }
GPU_DEVICE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
GPU_DEVICE float abs(float x) { return __builtin_fabsf(x); }
GPU_DEVICE float floor(float x) { return __builtin_floorf(x); }
GPU_DEVICE float min(float a, float b) { return __builtin_fminf(a, b); }
GPU_DEVICE float max(float a, float b) { return __builtin_fmaxf(a, b); }
GPU_DEVICE float exp(float x) { return __builtin_expf(x); }
GPU_DEVICE float log(float x) { return __builtin_logf(x); }
GPU_DEVICE bool isnan(float x) { return x != x; }

// 2^(x log2 e): what the rounded product lacks is put back, so that the error does not grow with |x|.
GPU_DEVICE float fast_exp(float x) {
  constexpr float kLog2e = 1.44269502162933349609375f, kLog2eRest = 1.925963033500149e-8f,
                  kLn2 = 0.693147181f;
  const float power = x * kLog2e;
  const float rest = fma(x, kLog2eRest, fma(x, kLog2e, -power));
  const float y = __builtin_amdgcn_exp2f(power);
  return abs(power) < 150.0f ? fma(y * kLn2, rest, y) : y;  // beyond, the rest may be inf - inf
}
GPU_DEVICE float fast_rcp(float x) { return __builtin_amdgcn_rcpf(x); }

template <int I>
GPU_DEVICE uint32_t zip_bytes(uint32_t a, uint32_t b) {
  return __builtin_amdgcn_perm(b, a, 0x0c000c00u | I | (I + 4) << 16);  // 0x0c: a byte of zeros
}
GPU_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  const float low = __builtin_bit_cast(float, a << 16) * __builtin_bit_cast(float, b << 16);
  const float high = __builtin_bit_cast(float, a & 0xffff0000u) * __builtin_bit_cast(float, b & 0xffff0000u);
  return __builtin_bit_cast(uint32_t, low) >> 16 | (__builtin_bit_cast(uint32_t, high) & 0xffff0000u);
}

}  // namespace trivium::TRIVIUM_GPU_NS
