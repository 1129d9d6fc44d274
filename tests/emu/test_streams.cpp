// Streams, events, copies and graphs of the emulated device: what is right works in every order, what lacks a
// wait is refused or shows.
#include <numeric>

#include "emu_support.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int64_t kCount = 1000;

GPU_KERNEL(128) void scale_kernel(const float* x, float* y, float factor, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = factor * x[i];
}

GPU_KERNEL(128) void add_kernel(const float* a, const float* b, float* y, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = a[i] + b[i];
}

GPU_KERNEL(128) void fault_kernel(float* y) { y[32 + threadIdx.x] = 0; }

GPU_KERNEL(128) void store_kernel(float* y) { store_vec(y + 4 * threadIdx.x, Vec<float, 4>{}); }

void scale(const Queue& queue, const Buffer<float>& x, const Buffer<float>& y, float factor) {
  launch(queue.get(), {.grid = ceil_div(kCount, 128), .block = 128}, scale_kernel, x.data(), y.data(), factor,
         kCount);
}

std::vector<float> ramp() {
  std::vector<float> x(kCount);
  std::iota(x.begin(), x.end(), 0.0f);
  return x;
}

class Mark {
 public:
  Mark() { check(emu::kRuntime.event_create(0, &event_)); }
  ~Mark() { emu::kRuntime.event_destroy(event_); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  void record(const Queue& queue) const { check(emu::kRuntime.event_record(event_, queue.get())); }
  void hold(const Queue& queue) const { check(emu::kRuntime.stream_wait(queue.get(), event_)); }
  void synchronize() const { check(emu::kRuntime.event_synchronize(event_)); }

 private:
  EventHandle* event_ = nullptr;
};

// a = 2 x and b = 3 x on two streams, y = a + b on a third, and a reuse of a that must not come too early.
std::vector<float> join(const Buffer<float>& x, bool with_waits) {
  const Queue first, second, third;
  const Buffer<float> a(kCount), b(kCount), y(kCount);
  const Mark a_is_there, b_is_there, a_was_read;
  scale(first, x, a, 2);
  a_is_there.record(first);
  scale(second, x, b, 3);
  b_is_there.record(second);
  if (with_waits) {
    a_is_there.hold(third);
    b_is_there.hold(third);
  }
  launch(third.get(), {.grid = ceil_div(kCount, 128), .block = 128}, add_kernel, a.data(), b.data(), y.data(),
         kCount);
  a_was_read.record(third);
  if (with_waits) a_was_read.hold(first);
  scale(first, x, a, -1);
  third.synchronize();
  const auto result = y.values();
  first.synchronize();
  second.synchronize();
  return result;
}

TEST(Streams, EventsOrderTheWorkOfThreeStreams) {
  const Buffer<float> x(ramp());
  for (int round = 0; round < 20; ++round) {
    const auto y = join(x, true);
    for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(y[i], 5 * static_cast<float>(i)) << round;
  }
}

TEST(Streams, AMissingWaitShows) {
  const Buffer<float> x(ramp());
  int wrong = 0, refused = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<float> y;
    const std::string message = refusal([&] { y = join(x, false); });
    if (!message.empty()) {
      EXPECT_NE(message.find("a wait for an event or a synchronise is missing"), std::string::npos)
          << message;
      ++refused;
      continue;
    }
    for (size_t i = 0; i < kCount; ++i)
      if (y[i] != 5 * static_cast<float>(i)) {
        ++wrong;
        break;
      }
  }
  EXPECT_GE(wrong + refused, 5) << "of 20 orders";
}

TEST(Streams, HostReadsBeforeSynchronise) {
  const Buffer<float> x(ramp());
  const Queue queue;
  void* memory = nullptr;
  check(emu::kRuntime.allocate_host(0, x.bytes(), &memory));
  auto* host = static_cast<float*>(memory);
  std::fill_n(host, kCount, 7.0f);
  check(emu::kRuntime.copy(0, queue.get(), host, x.data(), x.bytes()));
  for (int64_t i = 0; i < kCount; ++i) EXPECT_TRUE(isnan(host[i])) << "the value is there before its time";
  queue.synchronize();
  for (int64_t i = 0; i < kCount; ++i) EXPECT_EQ(host[i], static_cast<float>(i));
  check(emu::kRuntime.deallocate_host(0, memory));
}

TEST(Streams, BlockingCopyBeforeSynchroniseIsRefused) {
  const Buffer<float> x(ramp()), y(kCount);
  const Queue queue;
  scale(queue, x, y, 2);
  const std::string message = refusal([&] { y.values(); });
  EXPECT_NE(message.find("a synchronise is missing"), std::string::npos) << message;
  queue.synchronize();
  EXPECT_EQ(y.values()[3], 6);
}

TEST(Streams, ChangingTheSourceOfACopyUnderWayIsRefused) {
  std::vector<float> host = ramp();
  const Buffer<float> x(kCount);
  const Queue queue;
  check(emu::kRuntime.copy(0, queue.get(), x.data(), host.data(), x.bytes()));
  host[5] = -1;
  const std::string message = refusal([&] { queue.synchronize(); });
  EXPECT_NE(message.find("the host changed the source of a copy"), std::string::npos) << message;
}

TEST(Streams, AnEventCanBeWaitedForAndRecordedAgain) {
  const Buffer<float> x(ramp()), y(kCount);
  const Queue queue;
  const Mark done;
  done.synchronize();  // never recorded: nothing to wait for
  for (const float factor : {2.0f, 3.0f}) {
    scale(queue, x, y, factor);
    done.record(queue);
    done.synchronize();
    EXPECT_EQ(y.values()[4], 4 * factor);
  }
}

TEST(Streams, AFaultLeavesTheDeviceUsable) {
  const Buffer<float> x(ramp()), y(kCount), small(128);
  const Queue broken, sound;
  const Mark never_reached;
  launch(broken.get(), {.grid = 1, .block = 128}, fault_kernel, small.data());
  scale(broken, x, y, 9);
  never_reached.record(broken);
  never_reached.hold(sound);
  scale(sound, x, y, 2);
  sound.synchronize();
  EXPECT_EQ(y.values()[3], 6) << "work behind the fault must not run";
  EXPECT_NE(refusal([&] { broken.synchronize(); }), "");
  EXPECT_EQ(refusal([&] { broken.synchronize(); }), "") << "a fault is reported once";
  scale(broken, x, y, 4);
  broken.synchronize();
  EXPECT_EQ(y.values()[3], 12);
}

TEST(Streams, MemoryOfOneDeviceIsNotTheOthers) {
  void* far = nullptr;
  check(emu::kRuntime.allocate(1, 4096, &far));
  const std::string message = refusal([&] { run_block(128, store_kernel, static_cast<float*>(far)); });
  EXPECT_NE(message.find("in a buffer of another device"), std::string::npos) << message;
  check(emu::kRuntime.deallocate(1, far));
}

TEST(Streams, CopiesAndFillsPastTheEndAreRefused) {
  const Buffer<float> x(10);
  std::vector<float> host(20);
  EXPECT_EQ(emu::kRuntime.copy(0, nullptr, x.data(), host.data(), 44), Status::invalid_argument);
  EXPECT_EQ(emu::kRuntime.copy(0, nullptr, host.data(), x.data() + 8, 12), Status::invalid_argument);
  EXPECT_EQ(emu::kRuntime.fill(0, nullptr, x.data(), 0, 41), Status::invalid_argument);
}

TEST(Streams, MoreMemoryThanThereIsIsRefusedWithTheNumbers) {
  void* memory = nullptr;
  EXPECT_EQ(emu::kRuntime.allocate(0, int64_t{1} << 50, &memory), Status::out_of_memory);
  EXPECT_NE(std::string(guard_message()).find("needs 1073741824 MiB of device memory"), std::string::npos)
      << guard_message();
}

// --- graphs ---

TEST(Graphs, ReplayWithChangedBuffers) {
  const Buffer<float> x(ramp()), a(kCount), y(kCount);
  const Queue queue;
  check(emu::kRuntime.graph_begin(queue.get()));
  scale(queue, x, a, 2);
  scale(queue, a, y, 5);
  GraphHandle* graph = nullptr;
  check(emu::kRuntime.graph_end(queue.get(), &graph));
  queue.synchronize();
  for (const float start : {0.0f, 100.0f, -3.0f}) {
    std::vector<float> values = ramp();
    for (float& v : values) v += start;
    check(emu::kRuntime.copy(0, nullptr, x.data(), values.data(), x.bytes()));
    check(emu::kRuntime.graph_launch(graph, queue.get()));
    queue.synchronize();
    EXPECT_EQ(y.values()[7], 10 * (7 + start));
  }
  check(emu::kRuntime.graph_destroy(graph));
}

TEST(Graphs, RecordingRunsNothingAndRefusesHostDecisions) {
  const Buffer<float> x(ramp()), y(std::vector<float>(kCount, 1.0f));
  const Queue queue;
  check(emu::kRuntime.graph_begin(queue.get()));
  scale(queue, x, y, 2);
  EXPECT_NE(refusal([&] { queue.synchronize(); }), "");
  void* memory = nullptr;
  EXPECT_EQ(emu::kRuntime.allocate(0, 64, &memory), Status::device_error);
  GraphHandle* graph = nullptr;
  check(emu::kRuntime.graph_end(queue.get(), &graph));
  queue.synchronize();
  EXPECT_EQ(y.values()[3], 1);
  check(emu::kRuntime.graph_destroy(graph));
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
