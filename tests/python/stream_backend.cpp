// A backend for test_devices.py: host memory, no kernels, and a log of what happens to streams.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/backend.h"

namespace trivium {
namespace {

constexpr uintptr_t kStream = 0x5000;  // the vendor's handle of every stream
std::atomic<int> g_live{0};            // allocations that were not given back
std::string g_log;

Status allocate(int32_t, int64_t bytes, void** memory) {
  *memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  ++g_live;
  return Status::ok;
}

Status deallocate(int32_t, void* memory) {
  std::free(memory);
  --g_live;
  return Status::ok;
}

template <class Handle>
Status create(int32_t, Handle** handle) {
  *handle = reinterpret_cast<Handle*>(&g_live);
  return Status::ok;
}

template <class... Handles>
Status accept(Handles*...) {
  return Status::ok;
}

const Runtime kRuntime{
    .struct_size = sizeof(Runtime),
    .device_count = [](int32_t* count) { return *count = 1, Status::ok; },
    .device_properties = [](int32_t, DeviceProperties* p) { return *p = {}, Status::ok; },
    .allocate = allocate,
    .deallocate = deallocate,
    .copy =
        [](int32_t, StreamHandle*, void* to, const void* from, int64_t bytes) {
          std::memcpy(to, from, static_cast<size_t>(bytes));
          return Status::ok;
        },
    .fill =
        [](int32_t, StreamHandle*, void* to, int32_t byte, int64_t bytes) {
          std::memset(to, byte, static_cast<size_t>(bytes));
          return Status::ok;
        },
    .stream_create = create<StreamHandle>,
    .stream_destroy = accept<StreamHandle>,
    .stream_synchronize =
        [](StreamHandle*) {
          g_log += "sync ";
          return Status::ok;
        },
    .stream_wait = accept<StreamHandle, EventHandle>,
    .event_create = create<EventHandle>,
    .event_destroy = accept<EventHandle>,
    .event_record = accept<EventHandle, StreamHandle>,
    .event_synchronize = accept<EventHandle>,
    .stream_native =
        [](StreamHandle*, void** native) {
          *native = reinterpret_cast<void*>(kStream);
          return Status::ok;
        },
    .foreign_wait =
        [](StreamHandle*, void* native) {
          g_log += "wait:" + std::to_string(reinterpret_cast<uintptr_t>(native)) + " ";
          return Status::ok;
        },
    .wait_foreign =
        [](StreamHandle*, void* native) {
          g_log += "follow:" + std::to_string(reinterpret_cast<uintptr_t>(native)) + " ";
          return Status::ok;
        },
    .device_synchronize =
        [](int32_t) {
          g_log += "device ";
          return Status::ok;
        },
};

const Kernels kKernels{.struct_size = sizeof(Kernels)};

const trivium_backend_v1 kBackend{.struct_size = sizeof(trivium_backend_v1),
                                  .abi = kBackendAbi,
                                  .build_id = BUILD_ID,
                                  .name = "stream",
                                  .kind = DeviceKind::KIND,
                                  .last_error = [] { return ""; },
                                  .runtime = &kRuntime,
                                  .kernels = &kKernels};

}  // namespace
}  // namespace trivium

const trivium_backend_v1* trivium_backend_get(uint32_t) { return &trivium::kBackend; }

extern "C" {
int stream_live() { return trivium::g_live; }
// What happened since the last call.
const char* stream_log() {
  static std::string shown;
  shown = std::move(trivium::g_log);
  trivium::g_log.clear();
  return shown.c_str();
}
}
