// A whole loadable backend, small: host memory that it counts, no kernel that works. CMakeLists.txt builds it
// several times with one fault each.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/backend.h"

#ifndef DUMMY_ABI
#define DUMMY_ABI kBackendAbi
#endif
#ifndef DUMMY_STRUCT_SIZE
#define DUMMY_STRUCT_SIZE sizeof(trivium_backend_v1)
#endif
#ifndef DUMMY_BUILD_ID
#define DUMMY_BUILD_ID TRIVIUM_BUILD_ID
#endif
#ifndef DUMMY_TABLE_SIZE
#define DUMMY_TABLE_SIZE sizeof(Runtime)
#endif

namespace trivium {
namespace {

std::atomic<int> g_live{0};  // allocations, streams and events that were not given back
thread_local const char* t_error = "";

Status fail(Status status, const char* message) {
  t_error = message;
  return status;
}

Status device_count(int32_t* count) {
#ifdef DUMMY_ZERO_DEVICES
  *count = 0;
  return fail(Status::ok, "dummy: the driver has gone home");
#else
  *count = 2;
  return Status::ok;
#endif
}

Status device_properties(int32_t index, DeviceProperties* p) {
  if (index > 1) return fail(Status::device_error, "dummy: no such device");
  *p = {};
  std::strcpy(p->name, index == 0 ? "dummy zero" : "dummy one");
  p->total_bytes = 1 << 20;
  p->free_bytes = g_live;
  return Status::ok;
}

Status allocate(int32_t, int64_t bytes, void** memory) {
  if (bytes > 1 << 20) return fail(Status::out_of_memory, "dummy: 1 MiB is all there is");
  *memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  ++g_live;
  return Status::ok;
}

Status deallocate(int32_t, void* memory) {
  std::free(memory);
  --g_live;
  return Status::ok;
}

Status copy(int32_t, StreamHandle*, void* to, const void* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return Status::ok;
}

Status fill(int32_t, StreamHandle*, void* to, int32_t byte, int64_t bytes) {
  std::memset(to, byte, static_cast<size_t>(bytes));
  return Status::ok;
}

template <class Handle>
Status create(int32_t, Handle** handle) {
  *handle = reinterpret_cast<Handle*>(&g_live);
  ++g_live;
  return Status::ok;
}

template <class Handle>
Status destroy(Handle*) {
  --g_live;
  return Status::ok;
}

template <class... Handles>
Status accept(Handles*...) {
  return Status::ok;
}

const Runtime kRuntime{
    .struct_size = DUMMY_TABLE_SIZE,
    .device_count = device_count,
    .device_properties = device_properties,
    .allocate = allocate,
    .deallocate = deallocate,
    .copy = copy,
    .fill = fill,
    .stream_create = create<StreamHandle>,
    .stream_destroy = destroy<StreamHandle>,
    .stream_synchronize = accept<StreamHandle>,
    .stream_wait = accept<StreamHandle, EventHandle>,
    .event_create = create<EventHandle>,
    .event_destroy = destroy<EventHandle>,
    .event_record = accept<EventHandle, StreamHandle>,
    .event_synchronize = [](EventHandle*) { return fail(Status::error, "dummy: the event is lost"); }};

const Kernels kKernels = [] {
  Kernels k{};
  k.struct_size = sizeof(Kernels);
  k.rms_norm = [](StreamHandle*, const RmsNormArgs*) { return fail(Status::error, "dummy: rms_norm fails"); };
  k.linear = [](StreamHandle*, const LinearArgs*) {
    return fail(Status::out_of_memory, "dummy: linear fails");
  };
  k.convert = [](StreamHandle*, const ConvertArgs*) {
    return fail(Status::invalid_argument, "dummy: convert fails");
  };
  k.moe_route = [](StreamHandle*, const MoeRouteArgs*) {
    return fail(Status::device_error, "dummy: route fails");
  };
  k.attention = [](StreamHandle*, const AttentionArgs*) {
    return fail(Status::not_implemented, "dummy: attention fails");
  };
  return k;  // swiglu and the others stay empty
}();

const trivium_backend_v1 kBackend{.struct_size = DUMMY_STRUCT_SIZE,
                                  .abi = DUMMY_ABI,
                                  .build_id = DUMMY_BUILD_ID,
                                  .name = "dummy",
                                  .kind = DeviceKind::DUMMY_KIND,
                                  .last_error = [] { return t_error; },
#ifdef DUMMY_NO_TABLES
                                  .runtime = nullptr,
#else
                                  .runtime = &kRuntime,
#endif
                                  .kernels = &kKernels};

}  // namespace
}  // namespace trivium

const trivium_backend_v1* trivium_backend_get([[maybe_unused]] uint32_t abi) {
#ifdef DUMMY_NULL
  return nullptr;
#else
  return &trivium::kBackend;
#endif
}
