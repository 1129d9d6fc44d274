// The CPU backend's tables. Streams and events are empty here: kernels run to completion inside the call.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "core/backend.h"
#include "core/parallel.h"
#include "core/registry.h"
#include "cpu/kernels.h"
#include "cpu/levels.h"
#include "cpu/lut.h"

namespace trivium {
namespace cpu {
namespace {

// Turns `void kernel(const Args&)` into a table entry that no exception leaves.
template <auto kernel, class Args>
Status entry(StreamHandle*, const Args* args) {
  return guarded([&] { kernel(*args); });
}

// The same for a kernel that exists once per CPU level.
template <auto member, class Args>
Status level_entry(StreamHandle*, const Args* args) {
  return guarded([&] { (current_level().*member)(*args); });
}

template <auto member, class Args>
Status mlstm_entry(StreamHandle*, const Args* args) {
  return guarded([&] { (current_level().mlstm().*member)(*args); });
}

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  for (int64_t kilobytes; file >> key >> kilobytes; std::getline(file, unit))
    if (key == "MemAvailable:") return kilobytes << 10;
  return int64_t{::sysconf(_SC_AVPHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
}

Status device_count(int32_t* count) {
  *count = 1;
  return Status::ok;
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "cpu";
}

Status device_properties(int32_t, DeviceProperties* p) {
  return guarded([&] {
    *p = {};
    std::strncpy(p->name, cpu_model().c_str(), sizeof p->name - 1);
    std::strncpy(p->arch, current_level().name, sizeof p->arch - 1);
    p->total_bytes = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
    p->free_bytes = available_memory();
    p->warp_size = 1;
    p->num_units = num_threads();
  });
}

// Overcommitting kernels grant anything and kill later, so large requests are held against what is free.
constexpr int64_t kCheckedBytes = int64_t{64} << 20;
constexpr int64_t kHugePage = 2 << 20;

Status allocate(int32_t, int64_t bytes, void** memory) {
  return guarded([&] {
    if (bytes >= kCheckedBytes) {
      const int64_t available = available_memory();
      if (bytes > available)
        throw OutOfMemory(
            concat("needs ", bytes >> 20, " MiB of memory; ", available >> 20, " MiB are free"));
    }
    const bool large = bytes >= kHugePage;
    if (::posix_memalign(memory, large ? kHugePage : 64, static_cast<size_t>(bytes)) != 0)
      throw OutOfMemory(concat("cannot allocate ", bytes, " bytes of memory"));
    // Streaming through gigabytes in 4 KiB pages spends a good part of its time on address translation.
    if (large) ::madvise(*memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  });
}

Status deallocate(int32_t, void* memory) {
  std::free(memory);
  return Status::ok;
}

Status copy(int32_t, StreamHandle*, void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
  return Status::ok;
}

Status fill(int32_t, StreamHandle*, void* to, int32_t byte, int64_t bytes) {
  if (bytes > 0) std::memset(to, byte, static_cast<size_t>(bytes));
  return Status::ok;
}

template <class Handle>
Status create(int32_t, Handle** handle) {
  *handle = nullptr;
  return Status::ok;
}

template <class... Handles>
Status nothing(Handles*...) {
  return Status::ok;
}

constexpr Runtime kRuntime{
    .struct_size = sizeof(Runtime),
    .device_count = device_count,
    .device_properties = device_properties,
    .allocate = allocate,
    .deallocate = deallocate,
    .copy = copy,
    .fill = fill,
    .stream_create = create<StreamHandle>,
    .stream_destroy = nothing<StreamHandle>,
    .stream_synchronize = nothing<StreamHandle>,
    .stream_wait = nothing<StreamHandle, EventHandle>,
    .event_create = create<EventHandle>,
    .event_destroy = nothing<EventHandle>,
    .event_record = nothing<EventHandle, StreamHandle>,
    .event_synchronize = nothing<EventHandle>,
};

constexpr Kernels kKernels{
    .struct_size = sizeof(Kernels),
    .convert = entry<convert, ConvertArgs>,
    .embedding = entry<embedding, EmbeddingArgs>,
    .rms_norm = level_entry<&LevelKernels::rms_norm, RmsNormArgs>,
    .linear = level_entry<&LevelKernels::linear, LinearArgs>,
    .rope_table = entry<rope_table, RopeTableArgs>,
    .rope = entry<rope, RopeArgs>,
    .rope_kv = entry<rope_kv, RopeKvArgs>,
    .attention = level_entry<&LevelKernels::attention, AttentionArgs>,
    .swiglu = level_entry<&LevelKernels::swiglu, SwigluArgs>,
    .moe_route = entry<moe_route, MoeRouteArgs>,
    .moe_permute = entry<moe_permute, MoePermuteArgs>,
    .moe_gate_up = level_entry<&LevelKernels::moe_gate_up, MoeGateUpArgs>,
    .moe_down = level_entry<&LevelKernels::moe_down, MoeDownArgs>,
    .moe_combine = entry<moe_combine, MoeCombineArgs>,
    .mxfp4_decode = entry<mxfp4_decode, Mxfp4DecodeArgs>,
    .sample = entry<sample, SampleArgs>,
    .lut_check_detectors = entry<lut_check_detectors, LutDetectArgs>,
    .lut_check_positional_embeddings = entry<lut_check_positional_embeddings, LutDetectPeArgs>,
    .lut_fill_outputs = entry<lut_fill_outputs, LutForwardArgs>,
    .lut_gather_x_gradients = entry<lut_gather_x_gradients, LutXGradientArgs>,
    .lut_propagate_through_detectors = entry<lut_propagate_through_detectors, LutPropagateArgs>,
    .lut_gather_w_gradients = entry<lut_gather_w_gradients, LutWGradientArgs>,
    .lut_fill_outputs_for_sequence = entry<lut_fill_outputs_for_sequence, LutSequenceForwardArgs>,
    .lut_gather_x_gradients_for_sequence =
        entry<lut_gather_x_gradients_for_sequence, LutSequenceXGradientArgs>,
    .lut_gather_pe_gradients = entry<lut_gather_pe_gradients, LutPeGradientArgs>,
    .lut_gather_w_gradients_for_sequence =
        entry<lut_gather_w_gradients_for_sequence, LutSequenceWGradientArgs>,
    .lut_decode = entry<lut_decode, LutDecodeArgs>,
    .lut_product_forward = entry<lut_product_forward, LutProductArgs>,
    .lut_product_backward = entry<lut_product_backward, LutProductArgs>,
    .lut_mark_rows = entry<lut_mark_rows, LutMarkRowsArgs>,
    .lut_normalize = entry<lut_normalize, LutNormalizeArgs>,
    .lut_staged = entry<lut_staged, LutStagedArgs>,
    .mlstm_gates = entry<mlstm_gates, MlstmGatesArgs>,
    .mlstm_forward = mlstm_entry<&MlstmKernels::forward, MlstmForwardArgs>,
    .mlstm_backward = mlstm_entry<&MlstmKernels::backward, MlstmBackwardArgs>,
    .mlstm_recurrent = mlstm_entry<&MlstmKernels::recurrent, MlstmRecurrentArgs>,
    .mlstm_segments = mlstm_entry<&MlstmKernels::segments, MlstmSegmentsArgs>,
    .head_norm = mlstm_entry<&MlstmKernels::head_norm, HeadNormArgs>,
    .silu_mul = mlstm_entry<&MlstmKernels::silu_mul, SiluMulArgs>,
    .soft_cap = entry<soft_cap, SoftCapArgs>,
    .linear_maximum = level_entry<&LevelKernels::linear_maximum, LinearMaximumArgs>,
    .lut_admit_indices = entry<lut_admit_indices, LutAdmitArgs>,
};

}  // namespace
}  // namespace cpu

const trivium_backend_v1& cpu_backend() {
  static const trivium_backend_v1 kBackend{
      .struct_size = sizeof(trivium_backend_v1),
      .abi = kBackendAbi,
      .build_id = TRIVIUM_BUILD_ID,
      .name = "cpu",
      .kind = DeviceKind::cpu,
      .last_error = guard_message,
      .runtime = &cpu::kRuntime,
      .kernels = &cpu::kKernels,
  };
  return kBackend;
}

}  // namespace trivium
