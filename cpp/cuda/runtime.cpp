// The Runtime table of CUDA and HIP: built once for each with the vendor's host_*.h. Streams never wait for
// the default stream, and memory is freed only when the device has finished with it.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "core/backend.h"
#if defined(TRIVIUM_GPU_HIP)
#include "hip/host_hip.h"
#else
#include "cuda/host_cuda.h"
#endif
#include "cuda/devices.h"
#include "cuda/launch.h"

namespace trivium {

struct StreamHandle {
  int device;
  TRIVIUM_GPU_NS::gpu::Stream raw;
  bool borrowed = false;  // another library's
};
struct EventHandle {
  int device;
  TRIVIUM_GPU_NS::gpu::Event raw;
};
struct GraphHandle {
  int device;
  TRIVIUM_GPU_NS::gpu::Graph raw;
};

namespace TRIVIUM_GPU_NS {
namespace {

const Devices& devices() {
  static const Devices kDevices = find_devices();
  return kDevices;
}

void check(int code, const char* what) {
  if (code == 0) return;
  const std::string message = concat(TRIVIUM_GPU_NAME, ": ", what, ": ", gpu::error_text(code));
  if (code == gpu::kOutOfMemory) throw OutOfMemory(message);
  throw DeviceError(message);
}

// Makes the device the calling thread's; refuses one that this build has no kernels for.
void use(int index) {
  const auto& list = devices().list;
  if (index < 0 || index >= static_cast<int>(list.size()))
    throw DeviceError(
        concat("device " TRIVIUM_GPU_NAME ":", index, " does not exist: there are ", list.size()));
  if (const auto& refusal = list[static_cast<size_t>(index)].refusal; !refusal.empty())
    throw DeviceError(refusal);
  check(gpu::set_device(index), "choosing the device");
}

Status device_count(int32_t* count) {
  return guarded([&] {
    *count = static_cast<int32_t>(devices().list.size());
    // Leaves the reason where last_error() finds it.
    if (*count == 0) guarded([] { throw DeviceError(devices().reason); });
  });
}

Status device_properties(int32_t index, DeviceProperties* p) {
  return guarded([&] {
    use(index);
    const DeviceInfo& info = devices().list[static_cast<size_t>(index)];
    size_t free = 0, total = 0;
    check(gpu::memory_info(&free, &total), "reading the memory's size");
    *p = {};
    std::strncpy(p->name, info.name.c_str(), sizeof p->name - 1);
    std::strncpy(p->arch, info.arch.c_str(), sizeof p->arch - 1);
    p->total_bytes = static_cast<int64_t>(total);
    p->free_bytes = static_cast<int64_t>(free);
    p->shared_bytes = info.shared_bytes;
    p->warp_size = info.warp_size;
    p->num_units = info.num_units;
  });
}

void check_allocated(int code, int32_t index, int64_t bytes) {
  if (code == gpu::kOutOfMemory) {
    gpu::error_text(code);
    size_t free = 0, total = 0;
    check(gpu::memory_info(&free, &total), "reading the memory's size");
    throw OutOfMemory(concat(TRIVIUM_GPU_NAME ":", index, ": needs ", (bytes + (1 << 20) - 1) >> 20,
                             " MiB of memory; ", free >> 20, " of ", total >> 20, " MiB are free"));
  }
  check(code, "allocating memory");
}

Status allocate(int32_t index, int64_t bytes, void** memory) {
  return guarded([&] {
    use(index);
    const auto size = static_cast<size_t>(bytes);
    int code = gpu::allocate(memory, size);
    if (code == gpu::kOutOfMemory) {  // the pool may hold what has been given back
      gpu::error_text(code);
      if (gpu::device_synchronize() == 0 && gpu::empty_pool(index) == 0) code = gpu::allocate(memory, size);
    }
    check_allocated(code, index, bytes);
  });
}

Status deallocate(int32_t index, void* memory) {
  return guarded([&] {
    use(index);
    check(gpu::deallocate(memory), "freeing memory");
  });
}

// Whether the device and its driver give memory in the order of a stream (not all virtual GPUs do); tried
// once.
bool has_pool(const StreamHandle& stream) {
  constexpr uint64_t kKept = uint64_t{1} << 30;  // bytes that wait for the next allocation
  static std::mutex mutex;
  static std::map<int, bool> known;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace(stream.device, false);
  if (is_new) {
    void* tried = nullptr;
    int code = gpu::keep_in_pool(stream.device, kKept);
    if (code == 0) code = gpu::allocate_in_order(&tried, 1, stream.raw);
    if (code == 0) code = gpu::deallocate_in_order(tried, stream.raw);
    if (code != 0) gpu::error_text(code);
    entry->second = code == 0 || code == gpu::kOutOfMemory;
  }
  return entry->second;
}

Status allocate_in_order(StreamHandle* stream, int64_t bytes, void** memory) {
  return guarded([&] {
    use(stream->device);
    const auto size = static_cast<size_t>(bytes);
    check_allocated(
        has_pool(*stream) ? gpu::allocate_in_order(memory, size, stream->raw) : gpu::allocate(memory, size),
        stream->device, bytes);
  });
}

Status deallocate_in_order(StreamHandle* stream, void* memory) {
  return guarded([&] {
    use(stream->device);
    check(has_pool(*stream) ? gpu::deallocate_in_order(memory, stream->raw) : gpu::deallocate(memory),
          "freeing memory");
  });
}

Status device_synchronize(int32_t index) {
  return guarded([&] {
    use(index);
    check(gpu::device_synchronize(), "waiting for the device");
  });
}

Status allocate_host(int32_t index, int64_t bytes, void** memory) {
  return guarded([&] {
    use(index);
    check(gpu::allocate_host(memory, static_cast<size_t>(bytes)), "allocating pinned host memory");
  });
}

Status deallocate_host(int32_t index, void* memory) {
  return guarded([&] {
    use(index);
    check(gpu::deallocate_host(memory), "freeing pinned host memory");
  });
}

// Queues work on the stream; without one on the calling thread's own stream, and waits for it.
template <class Fn>
Status queue(int32_t index, StreamHandle* stream, const char* what, Fn&& fn) {
  return guarded([&] {
    use(index);
    const gpu::Stream raw = stream ? stream->raw : gpu::kThreadStream;
    check(fn(raw), what);
    if (!stream) check(gpu::stream_synchronize(raw), what);
  });
}

Status copy(int32_t index, StreamHandle* stream, void* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return Status::ok;
  return queue(index, stream, "copying",
               [&](gpu::Stream raw) { return gpu::copy(to, from, static_cast<size_t>(bytes), raw); });
}

Status fill(int32_t index, StreamHandle* stream, void* to, int32_t byte, int64_t bytes) {
  if (bytes <= 0) return Status::ok;
  return queue(index, stream, "filling memory",
               [&](gpu::Stream raw) { return gpu::fill(to, byte, static_cast<size_t>(bytes), raw); });
}

template <class Handle, auto create>
Status create_handle(int32_t index, Handle** handle) {
  return guarded([&] {
    use(index);
    decltype(Handle::raw) raw{};
    check(create(&raw), "creating a stream or event");
    *handle = new Handle{.device = index, .raw = raw};
  });
}

template <class Handle, auto destroy>
Status destroy_handle(Handle* handle) {
  if (!handle) return Status::ok;
  return guarded([&] {
    const Handle h = *handle;
    delete handle;
    use(h.device);
    check(destroy(h.raw), "destroying a stream, event or graph");
  });
}

Status stream_borrow(int32_t index, void* native, StreamHandle** stream) {
  return guarded([&] {
    use(index);
    *stream = new StreamHandle{.device = index, .raw = static_cast<gpu::Stream>(native), .borrowed = true};
  });
}

Status stream_destroy(StreamHandle* stream) {
  if (!stream || !stream->borrowed) return destroy_handle<StreamHandle, gpu::stream_destroy>(stream);
  delete stream;
  return Status::ok;
}

Status stream_synchronize(StreamHandle* stream) {
  return guarded([&] {
    use(stream->device);
    check(gpu::stream_synchronize(stream->raw), "waiting for the stream");
  });
}

Status stream_wait(StreamHandle* stream, EventHandle* event) {
  return guarded([&] {
    use(stream->device);
    check(gpu::stream_wait(stream->raw, event->raw), "waiting for an event");
  });
}

Status event_record(EventHandle* event, StreamHandle* stream) {
  return guarded([&] {
    use(stream->device);
    check(gpu::event_record(event->raw, stream->raw), "recording an event");
  });
}

Status event_synchronize(EventHandle* event) {
  return guarded([&] {
    use(event->device);
    check(gpu::event_synchronize(event->raw), "waiting for an event");
  });
}

Status event_elapsed(EventHandle* from, EventHandle* to, float* ms) {
  return guarded([&] {
    use(from->device);
    check(gpu::event_elapsed(ms, from->raw, to->raw), "reading the time between events");
  });
}

Status stream_native(StreamHandle* stream, void** native) {
  *native = stream->raw;
  return Status::ok;
}

// `waiting` starts what it gets from now on after what `other` has been given so far.
Status order(int device, gpu::Stream waiting, gpu::Stream other, const char* what) {
  return guarded([&] {
    use(device);
    gpu::Event event{};
    check(gpu::event_create(&event), "creating an event");
    int code = gpu::event_record(event, other);
    if (code == 0) code = gpu::stream_wait(waiting, event);
    gpu::event_destroy(event);  // the wait keeps what it needs
    check(code, what);
  });
}

Status foreign_wait(StreamHandle* stream, void* native) {
  return order(stream->device, static_cast<gpu::Stream>(native), stream->raw,
               "making another library's stream wait");
}

Status wait_foreign(StreamHandle* stream, void* native) {
  return order(stream->device, stream->raw, static_cast<gpu::Stream>(native),
               "waiting for another library's stream");
}

Status graph_begin(StreamHandle* stream) {
  return guarded([&] {
    use(stream->device);
    check(gpu::capture_begin(stream->raw), "beginning a graph");
  });
}

Status graph_end(StreamHandle* stream, GraphHandle** graph) {
  return guarded([&] {
    use(stream->device);
    gpu::Graph raw{};
    check(gpu::capture_end(stream->raw, &raw), "ending a graph");
    *graph = new GraphHandle{stream->device, raw};
  });
}

Status graph_launch(GraphHandle* graph, StreamHandle* stream) {
  return guarded([&] {
    use(stream->device);
    check(gpu::graph_launch(graph->raw, stream->raw), "launching a graph");
  });
}

}  // namespace

void launch_kernel(Stream stream, const LaunchShape& shape, const void* kernel, void** arguments) {
  const Grid& grid = shape.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr int64_t kMaxX = int64_t{1} << 31, kMaxYZ = 1 << 16;
  const bool fits = grid.x > 0 && grid.x < kMaxX && grid.y > 0 && grid.y < kMaxYZ && grid.z > 0 &&
                    grid.z < kMaxYZ && shape.block > 0 && shape.block <= 1024 && shape.shared_bytes >= 0;
  use(stream->device);
  static const bool synchronous = [] {
    const char* value = std::getenv("TRIVIUM_SYNC");
    return value && std::strcmp(value, "1") == 0;
  }();
  int code = 0;
  if (fits)
    code = gpu::launch(kernel, {uint32_t(grid.x), uint32_t(grid.y), uint32_t(grid.z)}, uint32_t(shape.block),
                       arguments, size_t(shape.shared_bytes), stream->raw);
  if (fits && code == 0 && synchronous && !gpu::is_capturing(stream->raw))
    code = gpu::stream_synchronize(stream->raw);
  if (!fits || code != 0)
    throw DeviceError(concat(TRIVIUM_GPU_NAME ":", stream->device, ": a kernel of ", grid.x, " x ", grid.y,
                             " x ", grid.z, " blocks of ", shape.block, " threads with ", shape.shared_bytes,
                             " bytes of dynamic shared memory failed: ",
                             fits ? gpu::error_text(code) : "larger than any device allows"));
}

const Runtime& runtime_table() {
  static constexpr Runtime kRuntime{
      .struct_size = sizeof(Runtime),
      .device_count = device_count,
      .device_properties = device_properties,
      .allocate = allocate,
      .deallocate = deallocate,
      .copy = copy,
      .fill = fill,
      .stream_create = create_handle<StreamHandle, gpu::stream_create>,
      .stream_destroy = stream_destroy,
      .stream_synchronize = stream_synchronize,
      .stream_wait = stream_wait,
      .event_create = create_handle<EventHandle, gpu::event_create>,
      .event_destroy = destroy_handle<EventHandle, gpu::event_destroy>,
      .event_record = event_record,
      .event_synchronize = event_synchronize,
      .allocate_host = allocate_host,
      .deallocate_host = deallocate_host,
      .graph_begin = graph_begin,
      .graph_end = graph_end,
      .graph_launch = graph_launch,
      .graph_destroy = destroy_handle<GraphHandle, gpu::graph_destroy>,
      .event_elapsed = event_elapsed,
      .stream_native = stream_native,
      .foreign_wait = foreign_wait,
      .stream_borrow = stream_borrow,
      .allocate_in_order = allocate_in_order,
      .deallocate_in_order = deallocate_in_order,
      .wait_foreign = wait_foreign,
      .device_synchronize = device_synchronize,
  };
  return kRuntime;
}

}  // namespace TRIVIUM_GPU_NS
}  // namespace trivium
