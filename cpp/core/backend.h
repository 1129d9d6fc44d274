// The seam: what a backend gives the core. A backend is two tables of C function pointers; `cpu` is linked
// in, others are shared libraries that export trivium_backend_get. No STL type and no exception crosses it.
#pragma once

#include <cstdint>

#include "core/device.h"
#include "core/error.h"
#include "core/stream.h"
#include "ops/args.h"
#include "ops/lut_args.h"
#include "ops/mlstm_args.h"

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
  // Host memory that copies of this backend reach in the background (pinned). Optional like the entries
  // below: null on the CPU.
  Status (*allocate_host)(int32_t index, int64_t bytes, void** memory) = nullptr;
  Status (*deallocate_host)(int32_t index, void* memory) = nullptr;
  // Between begin and end the stream records kernels, copies and fills instead of running them; launch
  // repeats them with the same arguments, in order.
  Status (*graph_begin)(StreamHandle* stream) = nullptr;
  Status (*graph_end)(StreamHandle* stream, GraphHandle** graph) = nullptr;
  Status (*graph_launch)(GraphHandle* graph, StreamHandle* stream) = nullptr;
  Status (*graph_destroy)(GraphHandle* graph) = nullptr;
  // Milliseconds of the device between two recorded events that have been waited for; not on emulated
  // devices.
  Status (*event_elapsed)(EventHandle* from, EventHandle* to, float* ms) = nullptr;
  // Streams of other libraries in this process (DLPack). `native` is the vendor's handle; null where the
  // vendor has none: emulated devices.
  Status (*stream_native)(StreamHandle* stream, void** native) = nullptr;
  // Later work on the other library's stream `native` waits for what is queued on `stream` now.
  Status (*foreign_wait)(StreamHandle* stream, void* native) = nullptr;
  // A handle over another library's stream `native` of the device; destroying it leaves that stream alone.
  Status (*stream_borrow)(int32_t index, void* native, StreamHandle** stream) = nullptr;
  // Memory in the order of a stream: work queued on it from now on may use it, and it is given back when what
  // is queued by then is done. Neither call waits.
  Status (*allocate_in_order)(StreamHandle* stream, int64_t bytes, void** memory) = nullptr;
  Status (*deallocate_in_order)(StreamHandle* stream, void* memory) = nullptr;
  // Later work on `stream` waits for what is queued now on the other library's stream `native`.
  Status (*wait_foreign)(StreamHandle* stream, void* native) = nullptr;
  Status (*device_synchronize)(int32_t index) = nullptr;  // blocks until all work of the device is done
};

// Kernels of a GPU are queued on the stream, which is never null there. An empty entry means unsupported and
// raises NotImplemented("rms_norm on hip").
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
  Status (*lut_check_detectors)(StreamHandle*, const LutDetectArgs*);
  Status (*lut_check_positional_embeddings)(StreamHandle*, const LutDetectPeArgs*);
  Status (*lut_fill_outputs)(StreamHandle*, const LutForwardArgs*);
  Status (*lut_gather_x_gradients)(StreamHandle*, const LutXGradientArgs*);
  Status (*lut_propagate_through_detectors)(StreamHandle*, const LutPropagateArgs*);
  Status (*lut_gather_w_gradients)(StreamHandle*, const LutWGradientArgs*);
  Status (*lut_fill_outputs_for_sequence)(StreamHandle*, const LutSequenceForwardArgs*);
  Status (*lut_gather_x_gradients_for_sequence)(StreamHandle*, const LutSequenceXGradientArgs*);
  Status (*lut_gather_pe_gradients)(StreamHandle*, const LutPeGradientArgs*);
  Status (*lut_gather_w_gradients_for_sequence)(StreamHandle*, const LutSequenceWGradientArgs*);
  Status (*lut_decode)(StreamHandle*, const LutDecodeArgs*);
  Status (*lut_product_forward)(StreamHandle*, const LutProductArgs*);
  Status (*lut_product_backward)(StreamHandle*, const LutProductArgs*);
  Status (*lut_mark_rows)(StreamHandle*, const LutMarkRowsArgs*);
  Status (*lut_normalize)(StreamHandle*, const LutNormalizeArgs*);
  Status (*lut_staged)(StreamHandle*, const LutStagedArgs*);
  Status (*mlstm_gates)(StreamHandle*, const MlstmGatesArgs*);
  Status (*mlstm_forward)(StreamHandle*, const MlstmForwardArgs*);
  Status (*mlstm_backward)(StreamHandle*, const MlstmBackwardArgs*);
  Status (*mlstm_recurrent)(StreamHandle*, const MlstmRecurrentArgs*);
  Status (*mlstm_segments)(StreamHandle*, const MlstmSegmentsArgs*);
  Status (*head_norm)(StreamHandle*, const HeadNormArgs*);
  Status (*silu_mul)(StreamHandle*, const SiluMulArgs*);
  Status (*soft_cap)(StreamHandle*, const SoftCapArgs*);
  Status (*linear_maximum)(StreamHandle*, const LinearMaximumArgs*);  // CPU only
  Status (*lut_admit_indices)(StreamHandle*, const LutAdmitArgs*);
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
