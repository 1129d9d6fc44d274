// The seam: what a backend gives the core. A backend is two tables of C function pointers; `cpu` is linked
// in, others are shared libraries that export trivium_backend_get. No STL type and no exception crosses it.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/error.h"
#include "core/stream.h"
#include "ops/args.h"

namespace trivium {

inline constexpr uint32_t kBackendAbi = 1;

// What an entry returns; anything but ok leaves a sentence in the backend's last_error().
enum class Status : int32_t {
  ok = 0,
  invalid_argument = 1,
  device_error = 2,
  out_of_memory = 3,
  not_implemented = 4,
  error = 5
};

struct DeviceProperties {
  char name[128];
  char arch[32];        // "x86-64-avx512bf16", "sm_90", "gfx942"
  int64_t total_bytes;  // device memory
  int64_t free_bytes;
  int64_t shared_bytes;  // shared memory of one block; 0 on the CPU
  int32_t warp_size;     // 1 on the CPU
  int32_t num_units;     // cores or multiprocessors
};

struct Runtime {
  uint32_t struct_size;
  Status (*device_count)(int32_t* count);  // ok with 0 devices leaves the reason in last_error()
  Status (*device_properties)(int32_t index, DeviceProperties* properties);
  Status (*allocate)(int32_t index, int64_t bytes, void** memory);  // 64-byte aligned or more
  Status (*deallocate)(int32_t index, void* memory);
  // Copies between host and device or within the device, ordered on the stream (null: blocking).
  Status (*copy)(int32_t index, StreamHandle* stream, void* to, const void* from, int64_t bytes);
  Status (*fill)(int32_t index, StreamHandle* stream, void* to, int32_t byte, int64_t bytes);
  Status (*stream_create)(int32_t index, StreamHandle** stream);
  Status (*stream_destroy)(StreamHandle* stream);
  Status (*stream_synchronize)(StreamHandle* stream);
  Status (*stream_wait)(StreamHandle* stream, EventHandle* event);
  Status (*event_create)(int32_t index, EventHandle** event);
  Status (*event_destroy)(EventHandle* event);
  Status (*event_record)(EventHandle* event, StreamHandle* stream);
  Status (*event_synchronize)(EventHandle* event);
};

// An empty entry means unsupported and raises NotImplemented("rms_norm on hip").
struct Kernels {
  uint32_t struct_size;
  Status (*convert)(StreamHandle*, const ConvertArgs*);
  Status (*embedding)(StreamHandle*, const EmbeddingArgs*);
  Status (*rms_norm)(StreamHandle*, const RmsNormArgs*);
  Status (*linear)(StreamHandle*, const LinearArgs*);
  Status (*rope_table)(StreamHandle*, const RopeTableArgs*);
  Status (*rope)(StreamHandle*, const RopeArgs*);
  Status (*rope_kv)(StreamHandle*, const RopeKvArgs*);
  Status (*attention)(StreamHandle*, const AttentionArgs*);
  Status (*swiglu)(StreamHandle*, const SwigluArgs*);
  Status (*moe_route)(StreamHandle*, const MoeRouteArgs*);
  Status (*moe_permute)(StreamHandle*, const MoePermuteArgs*);
  Status (*moe_gate_up)(StreamHandle*, const MoeGateUpArgs*);
  Status (*moe_down)(StreamHandle*, const MoeDownArgs*);
  Status (*moe_combine)(StreamHandle*, const MoeCombineArgs*);
  Status (*mxfp4_decode)(StreamHandle*, const Mxfp4DecodeArgs*);
  Status (*sample)(StreamHandle*, const SampleArgs*);
};

// Throws the error of the calling thread's last failed entry of `kind`.
[[noreturn]] void throw_status(DeviceKind kind, Status status);

// Exceptions end here: runs fn and turns what it throws into a Status and a message (thread-local).
Status guard(void (*fn)(void*), void* context) noexcept;
const char* guard_message();

template <class Fn>
Status guarded(Fn&& fn) noexcept {
  return guard([](void* f) { (*static_cast<std::remove_reference_t<Fn>*>(f))(); }, &fn);
}

}  // namespace trivium

extern "C" {

struct trivium_backend_v1 {
  uint32_t struct_size;
  uint32_t abi;          // kBackendAbi
  const char* build_id;  // must equal the core's, or the library is refused
  const char* name;      // "cuda"
  trivium::DeviceKind kind;
  const char* (*last_error)();
  const trivium::Runtime* runtime;
  const trivium::Kernels* kernels;
};

// The one symbol of a loadable backend; null when it cannot serve `abi`.
const trivium_backend_v1* trivium_backend_get(uint32_t abi);
}
