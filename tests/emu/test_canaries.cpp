// Kernels with one planted fault each. The emulator must refuse every one, and say why.
#include "cuda/block.cuh"
#include "cuda/tile.cuh"
#include "emu_support.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// Where the build has no instrumentation of plain loads and stores, a fault in them shows later, by its
// value.
#ifdef TRIVIUM_EMU_WATCH
constexpr bool kWatched = true;
#else
constexpr bool kWatched = false;
#endif

void expect_refused(const std::string& message, const std::vector<std::string>& parts) {
  ASSERT_NE(message, "") << "the fault was not found";
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << '"' << message << "\" does not say \"" << part << '"';
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

// Runs one block of 128 threads on a buffer of 128 floats and copies it back: some faults show only there.
template <class Kernel>
std::string run_canary(Kernel kernel) {
  const Buffer<float> y(std::vector<float>(128, 1.0f));
  return refusal([&] {
    run_block(128, kernel, y.data());
    y.values();
  });
}

int thread() { return static_cast<int>(threadIdx.x); }

GPU_KERNEL(128) void missing_barrier(float* y) {
  GPU_SHARED(float, values, 128);
  values[thread()] = y[thread()];
  y[thread()] = values[127 - thread()];
}

TEST(Canary, MissingBarrier) {
  const std::string message = run_canary(missing_barrier);
  if (kWatched)
    expect_refused(message, {"shared array values of 512 bytes"});
  else
    expect_refused(message, {"uninitialised shared memory", "sync_block is missing"});
}

// The second round overwrites what a slower warp still reads: values alone would rarely show it.
GPU_KERNEL(128) void missing_second_barrier(float* y) {
  GPU_SHARED(float, values, 128);
  for (int round = 0; round < 2; ++round) {
    values[thread()] = y[thread()] + static_cast<float>(round);
    sync_block();
    y[thread()] = values[127 - thread()];
  }
}

TEST(Canary, MissingBarrierBetweenRounds) {
  if (!kWatched) GTEST_SKIP() << "needs the instrumentation of plain loads and stores";
  expect_refused(run_canary(missing_second_barrier), {"with no sync between them", "thread "});
}

GPU_KERNEL(128) void sync_warp_between_warps(float* y) {
  GPU_SHARED(float, values, 128);
  values[thread()] = y[thread()];
  sync_warp();
  y[thread()] = values[(thread() + kWarpSize) % 128];
}

TEST(Canary, SyncWarpBetweenWarps) {
  const std::string message = run_canary(sync_warp_between_warps);
  expect_refused(message, {kWatched ? "shared array values" : "uninitialised shared memory"});
}

GPU_KERNEL(128) void barrier_in_one_branch(float* y) {
  if (thread() < 64) sync_block();
  y[thread()] = 0;
}

TEST(Canary, BarrierThatSomeThreadsMiss) {
  expect_refused(run_canary(barrier_in_one_branch), {"sync_block at test_canaries.cpp:", "exit"});
}

GPU_KERNEL(128) void two_barriers(float* y) {
  if (thread() < 64) {
    sync_block();
  } else {
    sync_block();
  }
  y[thread()] = 0;
}

TEST(Canary, DivergentBarriers) {
  expect_refused(run_canary(two_barriers),
                 {"arrives in sync_block at test_canaries.cpp:", "while others wait in another"});
}

GPU_KERNEL(128) void divergent_shuffle(float* y) {
  if (lane_id() < 7)
    y[thread()] = shfl_xor(y[thread()], 1);
  else
    y[thread()] = shfl_down(y[thread()], 1);
}

TEST(Canary, DivergentShuffle) {
  expect_refused(run_canary(divergent_shuffle), {"waits in shfl_", "arrives in shfl_", "test_canaries.cpp:"});
}

GPU_KERNEL(128) void shuffle_outside_the_mask(float* y) {
  const LaneMask lower = full_mask() >> (kWarpSize / 2);
  if (lane_id() < kWarpSize / 2) y[thread()] = shfl_down(y[thread()], 1, lower);
}

TEST(Canary, ShuffleReadsALaneOutsideItsMask) {
  expect_refused(run_canary(shuffle_outside_the_mask),
                 {"reads lane", "shfl_down at", "which is not in the mask"});
}

GPU_KERNEL(128) void uninitialised_shared(float* y) {
  GPU_SHARED(float, sums, 128);
  if (thread() >= 64) sums[thread()] = 0;
  sync_block();
  y[thread()] = y[thread()] + sums[thread()];
}

TEST(Canary, UninitialisedSharedMemory) {
  const std::string message = run_canary(uninitialised_shared);
  if (kWatched)
    expect_refused(message, {"of shared array sums of 512 bytes, uninitialised: nobody wrote it"});
  else
    expect_refused(message, {"uninitialised shared memory"});
}

GPU_KERNEL(128) void lower_32_lanes(float* y) {
  y[thread()] = shfl(y[thread()], 0, static_cast<LaneMask>(0xffffffffu));
}

TEST(Canary, MaskOf32LanesOn64) {
  const std::string message = run_canary(lower_32_lanes);
  if (kWarpSize == 32)
    EXPECT_EQ(message, "");
  else
    expect_refused(message, {"with a mask that leaves it out"});
}

GPU_KERNEL(128) void missing_async_wait(const float* x, float* y) {
  GPU_SHARED(float, values, 512);
  async_copy16(values + 4 * thread(), x + 4 * thread());
  async_commit();
  sync_block();
  y[thread()] = values[511 - thread()];
  async_wait<0>();
}

TEST(Canary, MissingAsyncWait) {
  const Buffer<float> x(std::vector<float>(512, 1.0f)), y(128);
  const std::string message = refusal([&] {
    run_block(128, missing_async_wait, x.data(), y.data());
    y.values();
  });
  expect_refused(message,
                 {kWatched ? "before async_wait for the copy to it" : "an async_copy16 had not reached"});
}

GPU_KERNEL(128) void async_wait_never(const float* x, float*) {
  GPU_SHARED(float, values, 512);
  async_copy16(values + 4 * thread(), x + 4 * thread());
  async_commit();
}

TEST(Canary, AsyncCopyThatNobodyWaitsFor) {
  const Buffer<float> x(std::vector<float>(512, 1.0f)), y(128);
  expect_refused(refusal([&] { run_block(128, async_wait_never, x.data(), y.data()); }),
                 {"exits without async_wait for the async_copy16 at test_canaries.cpp:"});
}

// The wait covers the thread's own copies: others need a barrier too.
GPU_KERNEL(128) void async_wait_without_barrier(const float* x, float* y) {
  GPU_SHARED(float, values, 512);
  async_copy16(values + 4 * thread(), x + 4 * thread());
  async_commit();
  async_wait<0>();
  y[thread()] = values[511 - thread()];
}

TEST(Canary, AsyncWaitWithoutBarrier) {
  const Buffer<float> x(std::vector<float>(512, 1.0f)), y(128);
  const std::string message = refusal([&] {
    run_block(128, async_wait_without_barrier, x.data(), y.data());
    y.values();
  });
  expect_refused(message, {kWatched ? "shared array values of 2048 bytes" : "sync_block is missing"});
}

GPU_KERNEL(128) void misaligned_vector(float* y) { store_vec(y, load_vec<4>(y + 1)); }

TEST(Canary, MisalignedVector) {
  expect_refused(run_canary(misaligned_vector), {"misaligned", "16 bytes", "load_vec at test_canaries.cpp:"});
}

GPU_KERNEL(128) void past_shared_memory(float* y) {
  GPU_SHARED(float, values, 127);
  values[thread()] = y[thread()];
}

TEST(Canary, PastTheEndOfSharedMemory) {
  expect_refused(run_canary(past_shared_memory), {"past ", "shared array values", "of 508 bytes"});
}

GPU_KERNEL(128) void past_global_buffer(float* y) { y[thread() + 1] = 0; }

TEST(Canary, PastTheEndOfAGlobalBuffer) {
  expect_refused(run_canary(past_global_buffer), {"past the end of a buffer of 512 bytes, at byte 512"});
}

GPU_KERNEL(128) void reads_past_global_buffer(float* y) { store_vec(y, load_vec<4>(y + 4 * thread())); }

TEST(Canary, VectorReadPastTheEndOfAGlobalBuffer) {
  expect_refused(run_canary(reads_past_global_buffer),
                 {"reads 16 bytes past the end of a buffer", "load_vec at"});
}

GPU_KERNEL(128) void host_pointer(const float* x, float* y) { store_vec(y, load_vec<4>(x)); }

TEST(Canary, HostMemory) {
  alignas(16) const float host[4] = {1, 2, 3, 4};
  const Buffer<float> y(128);
  expect_refused(refusal([&] { run_block(128, host_pointer, static_cast<const float*>(host), y.data()); }),
                 {"reads 16 bytes in memory that is neither shared nor a buffer of this device"});
}

GPU_KERNEL(128) void exits_before_shuffle(float* y) {
  if (lane_id() == 5) return;
  y[thread()] = shfl_xor(y[thread()], 1);
}

TEST(Canary, LaneExitsBeforeAShuffle) {
  expect_refused(run_canary(exits_before_shuffle), {"lane 5", "exit", "shfl_xor at test_canaries.cpp:"});
}

GPU_KERNEL(128) void exits_before_product(float* y) {
  MmaTile<bf16>::Acc acc{};
  const MmaTile<bf16>::Operand zero{};
  if (lane_id() == 3) return;
  MmaTile<bf16>::mma(acc, zero, zero);
  y[thread()] = acc.x[0];
}

TEST(Canary, LaneExitsBeforeATileProduct) {
  expect_refused(run_canary(exits_before_product),
                 {"lane 3", "exit", kWarpSize == 32 ? "mma_m16n8k16" : "mfma_16x16x16"});
}

GPU_KERNEL(128) void too_much_shared(float* y) {
  GPU_SHARED(float, large, 20000);
  large[thread()] = y[thread()];
}

TEST(Canary, MoreSharedMemoryThanTheDeviceHas) {
  expect_refused(run_canary(too_much_shared), {"shared array large", "80000 bytes"});
}

GPU_KERNEL(1024) void anything(float*) {}

TEST(Canary, LaunchesThatNoDeviceWouldStart) {
  const Buffer<float> y(128);
  const Queue queue;
  const auto start = [&](int64_t grid, int64_t block, int64_t bytes) {
    return refusal([&] {
      launch(queue.get(), {.grid = grid, .block = block, .shared_bytes = bytes}, anything, y.data());
      queue.synchronize();
    });
  };
  EXPECT_EQ(start(0, 64, 0), "");
  EXPECT_EQ(start(3, 1024, 65536), "");
  expect_refused(start(1, 96, 0), {"block of 96 threads", "multiple of 64"});
  expect_refused(start(1, 2048, 0), {"block of 2048 threads"});
  expect_refused(start(int64_t{1} << 31, 64, 0), {"grid (2147483648, 1, 1)"});
  expect_refused(start(1, 64, 200 << 10), {"204800 bytes of dynamic shared memory"});
}

// What is sound must pass: bytes of one word from several threads, broadcasts, turns taken with sync_warp.
GPU_KERNEL(128) void sound_kernel(float* y) {
  GPU_SHARED(uint8_t, bytes, 127);
  GPU_SHARED(bf16, halves, 128);
  GPU_SHARED(float, totals, 32);
  const int t = thread();
  if (t < 127) bytes[t] = static_cast<uint8_t>(t);
  halves[127 - t] = to_bf16(static_cast<float>(t));
  if (lane_id() == 0) totals[warp_id()] = 0;
  sync_block();
  float sum = to_float(halves[t]) + static_cast<float>(bytes[t < 127 ? t : 0]) + bytes[3];
  for (int turn = 0; turn < 3; ++turn) {
    sum += totals[warp_id()];
    sync_warp();
    if (lane_id() == turn) totals[warp_id()] = totals[warp_id()] + 1;
    sync_warp();
  }
  sync_block();
  if (lane_id() == 5) totals[(warp_id() + 1) % num_warps()] = sum;
  y[t] = sum;
}

TEST(Canary, SoundKernelsPass) {
  const Buffer<float> y(128);
  run_block(128, sound_kernel, y.data());
  const auto got = y.values();
  for (int t = 0; t < 128; ++t)
    EXPECT_EQ(got[static_cast<size_t>(t)], static_cast<float>(127 - t + (t < 127 ? t : 0) + 3 + 0 + 1 + 2))
        << t;
}

TEST(Canary, TheSentenceHasBlockPlaceAndSeed) {
  expect_refused(run_canary(misaligned_vector),
                 {concat("emu", kWarpSize, ": "), "kernel launched at emu_support.h:", "block (0, 0, 0)",
                  "TRIVIUM_EMU_SEED="});
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
