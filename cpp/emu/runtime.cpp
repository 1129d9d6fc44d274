// The emulator's Runtime table.
#include "emu/runtime.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "core/error.h"
#include "emu/memory.h"
#include "emu/streams.h"

namespace trivium::emu {

std::set<StreamHandle*>& all_streams();  // streams.cpp

namespace {

constexpr int kNumDevices = 2;
constexpr int kNumUnits = 4;
constexpr int64_t kDefaultMemory = int64_t{8} << 30;

std::atomic<int64_t> g_waits{0};
std::mutex g_mutex;  // held while the tables below change and while kernels run

// Table entries: one at a time, and no exception leaves.
template <class Fn>
Status locked(Fn&& fn) {
  return guarded([&] {
    const std::lock_guard lock(g_mutex);
    fn();
  });
}

void check_device(int32_t index) {
  if (index < 0 || index >= kNumDevices)
    throw DeviceError(concat(kModel.name, " has ", kNumDevices, " devices, not one with index ", index));
}

void check_no_recording(const char* what) {
  if (graph_is_recorded()) throw DeviceError(concat(what, " while a stream records a graph"));
}

int64_t total_memory() {
  static const int64_t bytes = [] {
    const char* text = std::getenv("TRIVIUM_EMU_MEMORY_MIB");
    return text ? std::strtoll(text, nullptr, 10) << 20 : kDefaultMemory;
  }();
  return bytes;
}

bool on_device(const void* p) { return buffer_at(0, p).end || buffer_at(1, p).end; }

Status device_count(int32_t* count) {
  *count = kNumDevices;
  return Status::ok;
}

Status device_properties(int32_t index, DeviceProperties* p) {
  return locked([&] {
    check_device(index);
    *p = {};
    std::strncpy(p->name, concat("SIMT emulator, ", kModel.warp_size, " lanes").c_str(), sizeof p->name - 1);
    std::strncpy(p->arch, kModel.name, sizeof p->arch - 1);
    p->total_bytes = total_memory();
    p->free_bytes = total_memory() - allocated_bytes(index);
    p->shared_bytes = kModel.total_shared;
    p->warp_size = kModel.warp_size;
    p->num_units = kNumUnits;
  });
}

void submit(StreamHandle* stream, Work work) {
  static const bool at_once = [] {
    const char* text = std::getenv("TRIVIUM_SYNC");
    return text && *text == '1';
  }();
  queue(stream, std::move(work));
  if (at_once && !stream->recording) drain(stream);
}

void* allocate_checked(int32_t index, int64_t bytes) {
  if (bytes > total_memory() - allocated_bytes(index)) drain_all();  // what is being given back
  const int64_t available = total_memory() - allocated_bytes(index);
  if (bytes > available)
    throw OutOfMemory(concat("needs ", bytes >> 20, " MiB of device memory; ", available >> 20,
                             " MiB are free on ", kModel.name, ':', index));
  return allocate_device(index, bytes);
}

Status allocate(int32_t index, int64_t bytes, void** memory) {
  return locked([&] {
    check_device(index);
    check_no_recording("allocate");
    *memory = allocate_checked(index, bytes);
  });
}

// As on real devices, giving memory back waits for all work.
Status deallocate(int32_t, void* memory) {
  return locked([&] {
    check_no_recording("deallocate");
    g_waits += work_is_pending();
    drain_all();
    if (memory) deallocate_device(memory);
  });
}

// What other streams write before `stream` has reached the allocation is lost: they did not wait for it.
Status allocate_in_order(StreamHandle* stream, int64_t bytes, void** memory) {
  return locked([&] {
    check_no_recording("allocate");
    *memory = allocate_checked(stream->device, bytes);
    submit(stream,
           {.run = [p = *memory, bytes] { fill_pattern(p, static_cast<size_t>(bytes), kUnwrittenGlobal); }});
  });
}

Status deallocate_in_order(StreamHandle* stream, void* memory) {
  return locked([&] {
    check_no_recording("deallocate");
    submit(stream, {.run = [memory] { deallocate_device(memory); }});
  });
}

Status device_synchronize(int32_t) {
  ++g_waits;
  return locked([&] {
    drain_all();
    for (StreamHandle* stream : all_streams())
      if (!stream->error.empty()) throw DeviceError(std::exchange(stream->error, {}));
  });
}

Status allocate_host(int32_t, int64_t bytes, void** memory) {
  return guarded([&] {
    if (::posix_memalign(memory, 4096, static_cast<size_t>(std::max<int64_t>(bytes, 1))) != 0)
      throw OutOfMemory(concat("cannot allocate ", bytes, " bytes of host memory"));
    fill_pattern(*memory, static_cast<size_t>(bytes), kUnwrittenGlobal);
  });
}

Status deallocate_host(int32_t, void* memory) {
  return locked([&] {
    drain_all();
    std::free(memory);
  });
}

// --- copies ---

// What a host can only see when a kernel or the caller made a mistake.
void check_copied(const void* host, int64_t bytes) {
  const auto* words = static_cast<const unsigned char*>(host);
  bool shared = false, pending = false, global = false;
  for (int64_t i = 0; i + 4 <= bytes; i += 4) {
    uint32_t word;
    std::memcpy(&word, words + i, 4);
    shared |= word == kUnwrittenShared * 0x10001u;
    pending |= word == kPendingCopy * 0x10001u;
    global |= word == kUnwrittenGlobal * 0x10001u;
  }
  if (shared)
    throw DeviceError(concat(kModel.name,
                             ": a kernel stored a value of uninitialised shared memory (nobody wrote it, "
                             "or sync_block is missing)"));
  if (pending)
    throw DeviceError(concat(kModel.name,
                             ": a kernel stored shared memory that an async_copy16 had not reached "
                             "(async_wait or sync_block is missing)"));
  if (global && work_is_pending())
    throw DeviceError(concat(kModel.name,
                             ": the copy reads memory that nobody has written while work is pending "
                             "(a wait for an event or a synchronise is missing)"));
}

// The part of a copy or fill that touches a device must lie in one buffer.
void check_range(const char* what, const void* p, int64_t bytes) {
  for (int device = 0; device < kNumDevices; ++device)
    if (const Range r = buffer_at(device, p); r.end && !r.holds(p, static_cast<size_t>(bytes)))
      throw InvalidArgument(
          concat(what, " of ", bytes, " bytes goes past the end of a buffer of ", r.end - r.begin, " bytes"));
}

void copy_now(void* to, const void* from, int64_t bytes) {
  const bool to_host = !on_device(to) && on_device(from);
  std::memmove(to, from, static_cast<size_t>(bytes));
  if (to_host) check_copied(to, bytes);
}

uint64_t hash(const void* p, int64_t bytes) {
  uint64_t h = 0x9E3779B97F4A7C15ull;
  const auto* from = static_cast<const unsigned char*>(p);
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + i, static_cast<size_t>(std::min<int64_t>(8, bytes - i)));
    h = (h ^ word) * 0x100000001b3ull;
    h ^= h >> 29;
  }
  return h;
}

// Between the call and the next synchronise the host must leave its side alone. A destination holds a pattern
// meanwhile; a source must not change, unless earlier work of the device writes it.
Work copy_work(void* to, const void* from, int64_t bytes) {
  static std::vector<Range> destinations;  // host ranges that queued copies write
  const auto begin = reinterpret_cast<uintptr_t>(to);
  const Range range{begin, begin + static_cast<uintptr_t>(bytes)};
  if (!on_device(to))
    return {.run =
                [=] {
                  std::erase_if(destinations, [&](const Range& r) { return r.begin == range.begin; });
                  copy_now(to, from, bytes);
                },
            .on_queue =
                [=] {
                  destinations.push_back(range);
                  fill_pattern(to, static_cast<size_t>(bytes), kPendingCopy);
                }};
  if (on_device(from)) return {.run = [=] { copy_now(to, from, bytes); }};
  const auto expected = std::make_shared<uint64_t>();
  const auto checked = std::make_shared<bool>();
  return {.run =
              [=] {
                if (*checked && hash(from, bytes) != *expected)
                  throw DeviceError(concat(kModel.name,
                                           ": the host changed the source of a copy before it was "
                                           "synchronised"));
                copy_now(to, from, bytes);
              },
          .on_queue =
              [=] {
                const auto source = reinterpret_cast<uintptr_t>(from);
                *checked = std::none_of(destinations.begin(), destinations.end(), [&](const Range& r) {
                  return r.begin < source + static_cast<uintptr_t>(bytes) && source < r.end;
                });
                if (*checked) *expected = hash(from, bytes);
              }};
}

Status copy(int32_t, StreamHandle* stream, void* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return Status::ok;
  g_waits += !stream;
  return locked([&] {
    check_range("copy", to, bytes);
    check_range("copy", from, bytes);
    if (!stream)
      copy_now(to, from, bytes);
    else
      submit(stream, copy_work(to, from, bytes));
  });
}

Status fill(int32_t, StreamHandle* stream, void* to, int32_t byte, int64_t bytes) {
  if (bytes <= 0) return Status::ok;
  g_waits += !stream;
  return locked([&] {
    check_range("fill", to, bytes);
    const auto run = [=] { std::memset(to, byte, static_cast<size_t>(bytes)); };
    if (!stream)
      run();
    else
      submit(stream, {.run = run});
  });
}

// --- streams, events, graphs ---

Status stream_create(int32_t index, StreamHandle** stream) {
  return locked([&] {
    check_device(index);
    *stream = new StreamHandle{.device = index, .pending = {}, .error = {}};
    all_streams().insert(*stream);
  });
}

Status stream_destroy(StreamHandle* stream) {
  return locked([&] {
    drain_all();
    all_streams().erase(stream);
    delete stream;
  });
}

Status stream_synchronize(StreamHandle* stream) {
  ++g_waits;
  return locked([&] {
    if (stream->recording) throw DeviceError("synchronize of a stream that records a graph");
    drain(stream);
  });
}

Status stream_wait(StreamHandle* stream, EventHandle* event) {
  return locked([&] {
    if (stream->recording) throw DeviceError("a wait for an event on a stream that records a graph");
    queue(stream, {.run = nullptr, .wait = event->state, .ticket = event->state->recorded});
  });
}

Status event_create(int32_t index, EventHandle** event) {
  return locked([&] {
    check_device(index);
    *event = new EventHandle;
  });
}

Status event_destroy(EventHandle* event) {
  delete event;
  return Status::ok;
}

Status event_record(EventHandle* event, StreamHandle* stream) {
  return locked([&] {
    if (stream->recording) throw DeviceError("a record of an event on a stream that records a graph");
    const uint64_t ticket = ++event->state->recorded;
    queue(stream, {.run = nullptr, .record = event->state, .ticket = ticket});
  });
}

Status event_synchronize(EventHandle* event) {
  ++g_waits;
  return locked([&] { drain_until(*event->state, event->state->recorded); });
}

Status graph_begin(StreamHandle* stream) {
  return locked([&] {
    if (stream->recording) throw DeviceError("the stream already records a graph");
    stream->recording = new GraphHandle{.device = stream->device, .work = {}};
  });
}

Status graph_end(StreamHandle* stream, GraphHandle** graph) {
  return locked([&] {
    if (!stream->recording) throw DeviceError("the stream records no graph");
    *graph = std::exchange(stream->recording, nullptr);
  });
}

Status graph_launch(GraphHandle* graph, StreamHandle* stream) {
  return locked([&] {
    if (graph->device != stream->device) throw DeviceError("the graph was recorded on another device");
    for (const Work& work : graph->work) submit(stream, work);
  });
}

Status graph_destroy(GraphHandle* graph) {
  delete graph;
  return Status::ok;
}

}  // namespace

void enqueue_kernel(StreamHandle* stream, const LaunchConfig& config, const KernelCall& call) {
  const std::shared_ptr<void> arguments(call.arguments, call.release);
  const std::lock_guard lock(g_mutex);
  check_launch(kModel, config);
  submit(stream, {.run = [config, call, arguments, device = stream->device] {
           run_grid(kModel, config, device, call.body, call.arguments, call.bytes);
           if (const std::string found = check_guards(); !found.empty())
             throw DeviceError(
                 concat(kModel.name, ": the kernel launched at ", describe(config.place), ' ', found));
         }});
}

const Runtime kRuntime{.struct_size = sizeof(Runtime),
                       .device_count = device_count,
                       .device_properties = device_properties,
                       .allocate = allocate,
                       .deallocate = deallocate,
                       .copy = copy,
                       .fill = fill,
                       .stream_create = stream_create,
                       .stream_destroy = stream_destroy,
                       .stream_synchronize = stream_synchronize,
                       .stream_wait = stream_wait,
                       .event_create = event_create,
                       .event_destroy = event_destroy,
                       .event_record = event_record,
                       .event_synchronize = event_synchronize,
                       .allocate_host = allocate_host,
                       .deallocate_host = deallocate_host,
                       .graph_begin = graph_begin,
                       .graph_end = graph_end,
                       .graph_launch = graph_launch,
                       .graph_destroy = graph_destroy,
                       .allocate_in_order = allocate_in_order,
                       .deallocate_in_order = deallocate_in_order,
                       .device_synchronize = device_synchronize};

}  // namespace trivium::emu

int64_t trivium_emu_waits() { return trivium::emu::g_waits; }
