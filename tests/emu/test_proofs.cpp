// What the mLSTM and LUT families need of the seam, one small kernel each: atomics beside a reduction without
// them, 64-bit offsets, dynamic shared memory, pipelined copies. Streams and events are in test_streams.cpp,
// tiles of all types in test_tile.cpp.
#include <cmath>
#include <numeric>

#include "cuda/block.cuh"
#include "emu_support.h"
#include "support/inputs.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

GPU_DEVICE int64_t global_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// --- sums: atomics in any order, or partial sums that one block adds in a fixed order ---

GPU_KERNEL(128)
void atomic_sum_kernel(const float* x, int64_t count, float* sum, uint64_t* visits, uint32_t* largest) {
  const int64_t i = global_thread();
  if (i >= count) return;
  atomic_add(sum, x[i]);
  atomic_add(visits, uint64_t{1} << 33);
  atomic_max(largest, static_cast<uint32_t>(i));
}

GPU_KERNEL(128) void partial_sums_kernel(const float* x, int64_t count, float* partial) {
  const int64_t i = global_thread();
  const float sum = block_sum(i < count ? x[i] : 0.0f);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

GPU_KERNEL(128) void final_sum_kernel(const float* partial, int count, float* sum) {
  float mine = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    mine += partial[i];
  mine = block_sum(mine);
  if (threadIdx.x == 0) *sum = mine;
}

TEST(Proof, AtomicsAndADeterministicReductionAgree) {
  const int64_t count = 5000, blocks = ceil_div(count, 128);
  testing::Random random(1);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = static_cast<float>(random.normal());
  const double exact = std::accumulate(x.begin(), x.end(), 0.0);
  const Buffer<float> dx(x), partial(static_cast<size_t>(blocks)), sum(1);
  float first = 0;
  for (int round = 0; round < 5; ++round) {
    const Buffer<float> atomic(std::vector<float>{0});
    const Buffer<uint64_t> visits(std::vector<uint64_t>{0});
    const Buffer<uint32_t> largest(std::vector<uint32_t>{0});
    const Queue queue;
    launch(queue.get(), {.grid = blocks, .block = 128}, atomic_sum_kernel, dx.data(), count, atomic.data(),
           visits.data(), largest.data());
    launch(queue.get(), {.grid = blocks, .block = 128}, partial_sums_kernel, dx.data(), count,
           partial.data());
    launch(queue.get(), {.grid = 1, .block = 128}, final_sum_kernel, partial.data(), static_cast<int>(blocks),
           sum.data());
    queue.synchronize();
    EXPECT_EQ(visits.values()[0], static_cast<uint64_t>(count) << 33);
    EXPECT_EQ(largest.values()[0], static_cast<uint32_t>(count - 1));
    EXPECT_NEAR(atomic.values()[0], exact, 1e-3);
    EXPECT_NEAR(sum.values()[0], exact, 1e-4);
    if (round == 0) first = sum.values()[0];
    EXPECT_EQ(sum.values()[0], first) << "bits of the reduction without atomics changed";
  }
}

GPU_KERNEL(128) void histogram_kernel(const uint8_t* x, int64_t count, uint32_t* bins) {
  GPU_SHARED(uint32_t, local, 256);
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x)) local[i] = 0;
  sync_block();
  if (const int64_t i = global_thread(); i < count) atomic_add(&local[x[i]], 1);
  sync_block();
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
    if (local[i]) atomic_add(&bins[i], local[i]);
}

TEST(Proof, AtomicsInSharedMemory) {
  testing::Random random(2);
  std::vector<uint8_t> x(3001);
  std::vector<uint32_t> want(256);
  for (auto& v : x) ++want[v = static_cast<uint8_t>(random.integer(0, 255))];
  const Buffer<uint8_t> dx(x);
  const Buffer<uint32_t> bins(std::vector<uint32_t>(256, 0));
  const Queue queue;
  launch(queue.get(), {.grid = 24, .block = 128}, histogram_kernel, dx.data(), static_cast<int64_t>(x.size()),
         bins.data());
  queue.synchronize();
  EXPECT_EQ(bins.values(), want);
}

// --- offsets beyond 2^31 elements, of a buffer whose first elements do not exist ---

GPU_KERNEL(64) void far_row_kernel(float* p, int64_t row, int64_t ld) { p[row * ld + threadIdx.x] = 1; }
GPU_KERNEL(64) void far_row_in_32_bits_kernel(float* p, int row, int ld) {
  p[static_cast<int>(static_cast<unsigned>(row) * static_cast<unsigned>(ld)) +
    static_cast<int>(threadIdx.x)] = 1;
}

TEST(Proof, OffsetsBeyond31Bits) {
  const int64_t row = 70001, ld = 65536;  // 4.6e9 elements
  const Buffer<float> y(std::vector<float>(64, 0.0f));
  auto* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y.data()) - sizeof(float) * row * ld);
  run_block(64, far_row_kernel, origin, row, ld);
  EXPECT_EQ(y.values(), std::vector<float>(64, 1.0f));
#ifdef TRIVIUM_EMU_WATCH
  const std::string message = refusal(
      [&] { run_block(64, far_row_in_32_bits_kernel, origin, static_cast<int>(row), static_cast<int>(ld)); });
  EXPECT_NE(message.find("neither shared nor a buffer"), std::string::npos) << message;
#endif
}

// --- double-buffered copies into dynamic shared memory ---

GPU_KERNEL(64) void pipelined_sum_kernel(const float* x, int steps, int rows, float* y) {
  GPU_DYNAMIC_SHARED(float, stage);  // [2][64 * 4]
  const auto fetch = [&](int step) {
    const bool valid = step * 64 + static_cast<int>(threadIdx.x) < rows;
    if (step < steps)
      async_copy16(stage + step % 2 * 256 + threadIdx.x * 4, x + (int64_t{step} * 64 + threadIdx.x) * 4,
                   valid);
    async_commit();
  };
  fetch(0);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);
    async_wait<1>();
    sync_block();
    const auto v = load_vec<4>(stage + step % 2 * 256 + (63 - threadIdx.x) * 4);
    sum += v.x[0] + v.x[1] + v.x[2] + v.x[3];
    sync_block();
  }
  async_wait<0>();
  y[threadIdx.x] = sum;
}

TEST(Proof, PipelinedCopiesWithATail) {
  const int steps = 5, rows = 300;
  std::vector<float> x(rows * 4);
  std::iota(x.begin(), x.end(), 0.0f);
  const Buffer<float> dx(x), y(64);
  const Queue queue;
  launch(queue.get(), {.grid = 1, .block = 64, .shared_bytes = 2 * 256 * sizeof(float)}, pipelined_sum_kernel,
         dx.data(), steps, rows, y.data());
  queue.synchronize();
  const auto got = y.values();
  for (int t = 0; t < 64; ++t) {
    float want = 0;
    for (int step = 0; step < steps; ++step)
      for (int j = 0; j < 4; ++j)
        if (const int row = step * 64 + 63 - t; row < rows) want += x[static_cast<size_t>(row * 4 + j)];
    EXPECT_EQ(got[static_cast<size_t>(t)], want) << t;
  }
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
