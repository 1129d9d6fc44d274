// The emulator's form of the surface that cuda/gpu.cuh lists. TRIVIUM_EMU_WARP is 32 or 64.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>
#include <tuple>

#include "emu/runtime.h"
#include "emu/simt.h"

#if TRIVIUM_EMU_WARP == 64
#define TRIVIUM_GPU_NS emu64
#else
#define TRIVIUM_GPU_NS emu32
#endif

#define GPU_KERNEL(...)
#define GPU_DEVICE inline
#define GPU_SHARED(T, name, count)                                                    \
  static constexpr ::trivium::emu::SharedSlot name##_slot{#name, __FILE__, __LINE__}; \
  T* const name =                                                                     \
      static_cast<T*>(::trivium::emu::shared_memory(name##_slot, sizeof(T) * static_cast<size_t>(count)))
#define GPU_DYNAMIC_SHARED(T, name)                                                   \
  static constexpr ::trivium::emu::SharedSlot name##_slot{#name, __FILE__, __LINE__}; \
  T* const name = static_cast<T*>(::trivium::emu::dynamic_shared_memory(name##_slot))

namespace trivium::TRIVIUM_GPU_NS {

using emu::blockDim;
using emu::blockIdx;
using emu::gridDim;
using emu::threadIdx;
using Stream = StreamHandle*;
using Place = emu::Place;  // of the call, for messages

// --- lanes ---

constexpr int kWarpSize = TRIVIUM_EMU_WARP;
using LaneMask = std::conditional_t<kWarpSize == 64, uint64_t, uint32_t>;
constexpr LaneMask full_mask() { return static_cast<LaneMask>(~LaneMask{0}); }
GPU_DEVICE int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }
GPU_DEVICE int warp_id() { return static_cast<int>(threadIdx.x) / kWarpSize; }
GPU_DEVICE int num_warps() { return static_cast<int>(blockDim.x) / kWarpSize; }

template <class T>
GPU_DEVICE T shuffle(emu::Shuffle kind, T v, int argument, LaneMask mask, const char* what,
                     const Place& place) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable_v<T>, "shfl: 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  bits = emu::shuffle(kind, bits, argument, mask, what, place);
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
GPU_DEVICE T shfl(T v, int lane, LaneMask mask = full_mask(), Place place = Place::current()) {
  return shuffle(emu::Shuffle::index, v, lane, mask, "shfl", place);
}
template <class T>
GPU_DEVICE T shfl_xor(T v, int lane_mask, LaneMask mask = full_mask(), Place place = Place::current()) {
  return shuffle(emu::Shuffle::exclusive_or, v, lane_mask, mask, "shfl_xor", place);
}
template <class T>
GPU_DEVICE T shfl_up(T v, int n, LaneMask mask = full_mask(), Place place = Place::current()) {
  return shuffle(emu::Shuffle::up, v, n, mask, "shfl_up", place);
}
template <class T>
GPU_DEVICE T shfl_down(T v, int n, LaneMask mask = full_mask(), Place place = Place::current()) {
  return shuffle(emu::Shuffle::down, v, n, mask, "shfl_down", place);
}
GPU_DEVICE LaneMask ballot(bool p, LaneMask mask = full_mask(), Place place = Place::current()) {
  return static_cast<LaneMask>(emu::ballot(p, mask, "ballot", place));
}
GPU_DEVICE bool any(bool p, LaneMask mask = full_mask(), Place place = Place::current()) {
  return emu::ballot(p, mask, "any", place) != 0;
}
GPU_DEVICE bool all(bool p, LaneMask mask = full_mask(), Place place = Place::current()) {
  return emu::ballot(p, mask, "all", place) == mask;
}
GPU_DEVICE void sync_warp(LaneMask mask = full_mask(), Place place = Place::current()) {
  emu::sync_warp(mask, place);
}
GPU_DEVICE void sync_block(Place place = Place::current()) { emu::sync_block(place); }

// --- memory ---

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16);
  T x[N];
};
template <int N, class T>
GPU_DEVICE Vec<T, N> load_vec(const T* p, Place place = Place::current()) {
  Vec<T, N> v;
  emu::load(&v, p, sizeof v, "load_vec", place);
  return v;
}
template <int N, class T>
GPU_DEVICE Vec<T, N> load_stream(const T* p, Place place = Place::current()) {
  Vec<T, N> v;
  emu::load(&v, p, sizeof v, "load_stream", place);
  return v;
}
template <class T, int N>
GPU_DEVICE void store_vec(T* p, const Vec<T, N>& v, Place place = Place::current()) {
  emu::store(p, &v, sizeof v, "store_vec", place);
}

GPU_DEVICE void async_copy16(void* shared, const void* global, bool valid = true,
                             Place place = Place::current()) {
  emu::async_copy16(shared, global, valid, place);
}
GPU_DEVICE void async_commit(Place place = Place::current()) { emu::async_commit(place); }
template <int N>
GPU_DEVICE void async_wait(Place place = Place::current()) {
  emu::async_wait(N, place);
}

template <std::integral T>
GPU_DEVICE T atomic_add(T* p, std::type_identity_t<T> v, Place place = Place::current()) {
  return static_cast<T>(emu::atomic_add(p, sizeof v, static_cast<uint64_t>(v), place));
}
GPU_DEVICE float atomic_add(float* p, float v, Place place = Place::current()) {
  return emu::atomic_add(p, v, place);
}
template <std::integral T>
GPU_DEVICE T atomic_max(T* p, std::type_identity_t<T> v, Place place = Place::current()) {
  return static_cast<T>(
      emu::atomic_max(p, sizeof v, std::signed_integral<T>, static_cast<uint64_t>(v), place));
}
template <std::unsigned_integral T>
GPU_DEVICE T atomic_cas(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v,
                        Place place = Place::current()) {
  return static_cast<T>(emu::atomic_cas(p, sizeof v, expected, v, place));
}

// --- arithmetic ---

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
GPU_DEVICE float fast_exp(float x) { return __builtin_expf(x); }
GPU_DEVICE float fast_rcp(float x) { return 1.0f / x; }
GPU_DEVICE bool isnan(float x) { return __builtin_isnan(x); }
GPU_DEVICE int popcount(LaneMask mask) { return std::popcount(mask); }

template <int I>
GPU_DEVICE uint32_t zip_bytes(uint32_t a, uint32_t b) {
  return (a >> 8 * I & 0xffu) | (b >> 8 * I & 0xffu) << 16;
}
GPU_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  const float low = std::bit_cast<float>(a << 16) * std::bit_cast<float>(b << 16);
  const float high = std::bit_cast<float>(a & 0xffff0000u) * std::bit_cast<float>(b & 0xffff0000u);
  return std::bit_cast<uint32_t>(low) >> 16 | (std::bit_cast<uint32_t>(high) & 0xffff0000u);
}

// --- host ---

template <class... Parameters, class... Args>
void launch(Stream stream, const emu::LaunchConfig& config, void (*kernel)(Parameters...),
            const Args&... args) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  emu::enqueue_kernel(stream, config,
                      {.body =
                           [](void* p) {
                             const auto& call = *static_cast<const Call*>(p);
                             std::apply(call.kernel, call.parameters);
                           },
                       .arguments = new Call{kernel, std::tuple<Parameters...>(args...)},
                       .bytes = sizeof(Call),
                       .release = [](void* p) { delete static_cast<Call*>(p); }});
}

}  // namespace trivium::TRIVIUM_GPU_NS
