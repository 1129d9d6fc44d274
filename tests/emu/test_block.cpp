// Lane operations, block.cuh and arithmetic of the seam.
#include "cuda/block.cuh"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "emu_support.h"
#include "support/inputs.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kThreads = 192;  // an odd number of warps

GPU_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

GPU_KERNEL(192) void lanes_kernel(int64_t* out) {
  const int lane = lane_id();
  const int64_t v = (int64_t{1} << 40) + lane;
  const int64_t results[8] = {shfl(v, 3),
                              shfl(v, kWarpSize + 3),
                              shfl_xor(v, 5),
                              shfl_up(v, 2),
                              shfl_down(v, 2),
                              popcount(ballot(lane % 3 == 0)),
                              any(lane == kWarpSize - 1) * 2 + any(lane < 0),
                              all(lane >= 0) * 2 + all(lane > 0)};
  for (int i = 0; i < 8; ++i) out[thread() * 8 + i] = results[i];
}

TEST(Lanes, ShufflesAndVotes) {
  const Buffer<int64_t> out(8 * kThreads);
  run_block(kThreads, lanes_kernel, out.data());
  const auto got = out.values();
  const int64_t base = int64_t{1} << 40;
  for (int64_t t = 0; t < kThreads; ++t) {
    const int64_t lane = t % kWarpSize;
    const int64_t want[8] = {base + 3,
                             base + lane,
                             base + (lane ^ 5),
                             base + (lane < 2 ? lane : lane - 2),
                             base + (lane + 2 < kWarpSize ? lane + 2 : lane),
                             (kWarpSize + 2) / 3,
                             2,
                             2};
    for (int64_t i = 0; i < 8; ++i) ASSERT_EQ(got[static_cast<size_t>(t * 8 + i)], want[i]) << t << ' ' << i;
  }
}

// Lanes of a partial mask work among themselves.
GPU_KERNEL(64) void partial_mask_kernel(int* out) {
  const LaneMask even = ballot(lane_id() % 2 == 0);
  int v = lane_id();
  if (lane_id() % 2 == 0)
    v = shfl_xor(v, 2, even);
  else
    v = shfl_xor(v, 4, static_cast<LaneMask>(~even));
  sync_warp();
  out[thread()] = v;
}

TEST(Lanes, PartialMasks) {
  const Buffer<int> out(64);
  run_block(64, partial_mask_kernel, out.data());
  const auto got = out.values();
  for (int t = 0; t < 64; ++t) ASSERT_EQ(got[static_cast<size_t>(t)], t % kWarpSize ^ (t % 2 ? 4 : 2));
}

template <class T>
GPU_KERNEL(192)
void reductions_kernel(const T* x, T* out) {
  const T v = x[blockIdx.x * blockDim.x + threadIdx.x];
  T total;
  const T results[6] = {warp_sum(v), warp_max(v), block_sum(v), block_max(v), block_inclusive_scan(v, total),
                        total};
  for (int i = 0; i < 6; ++i) out[thread() * 6 + i] = results[i];
}

TEST(Block, ReductionsAndScansOfIntegers) {
  testing::Random random(1);
  std::vector<int64_t> x(kThreads);
  for (auto& v : x) v = random.integer(-1000, 1000);
  const Buffer<int64_t> dx(x), out(6 * kThreads);
  run_block(kThreads, reductions_kernel<int64_t>, dx.data(), out.data());
  const auto got = out.values();
  const int64_t sum = std::accumulate(x.begin(), x.end(), int64_t{0});
  for (size_t t = 0; t < kThreads; ++t) {
    const auto warp = x.begin() + static_cast<std::ptrdiff_t>(t / kWarpSize * kWarpSize);
    EXPECT_EQ(got[t * 6], std::accumulate(warp, warp + kWarpSize, int64_t{0}));
    EXPECT_EQ(got[t * 6 + 1], *std::max_element(warp, warp + kWarpSize));
    EXPECT_EQ(got[t * 6 + 2], sum);
    EXPECT_EQ(got[t * 6 + 3], *std::max_element(x.begin(), x.end()));
    EXPECT_EQ(got[t * 6 + 4],
              std::accumulate(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(t) + 1, int64_t{0}));
    EXPECT_EQ(got[t * 6 + 5], sum);
  }
}

template <class T>
GPU_KERNEL(192)
void sums_kernel(const T* x, T* out) {
  const T sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
  const T largest = block_max(x[blockIdx.x * blockDim.x + threadIdx.x]);
  out[(blockIdx.x * blockDim.x + threadIdx.x) * 2] = sum;
  out[(blockIdx.x * blockDim.x + threadIdx.x) * 2 + 1] = largest;
}

TEST(Block, FloatSumsHaveTheSameBitsInEveryOrderAndEveryThread) {
  testing::Random random(2);
  std::vector<float> x(kThreads * 4);
  for (size_t i = 0; i < kThreads; ++i)
    x[i] = x[i + kThreads] = x[i + 2 * kThreads] = x[i + 3 * kThreads] = static_cast<float>(random.normal());
  double exact = 0;
  for (size_t i = 0; i < kThreads; ++i) exact += x[i];
  const Buffer<float> dx(x), out(2 * x.size());
  float first = 0;
  for (int round = 0; round < 5; ++round) {
    const Queue queue;
    launch(queue.get(), {.grid = 4, .block = kThreads}, sums_kernel<float>, dx.data(), out.data());
    queue.synchronize();
    const auto got = out.values();
    if (round == 0) first = got[0];
    for (size_t i = 0; i < got.size(); i += 2) {
      ASSERT_EQ(got[i], first);
      ASSERT_EQ(got[i + 1], *std::max_element(x.begin(), x.end()));
    }
  }
  EXPECT_NEAR(first, exact, 1e-5);
}

GPU_KERNEL(192) void argmax_kernel(const float* x, ArgMax* out) {
  out[thread()] = block_argmax({x[thread()], thread()});
}

TEST(Block, ArgmaxTakesTheLowestIndexAndNoNan) {
  std::vector<float> x(kThreads, -1.0f);
  x[3] = NAN;
  x[100] = x[70] = x[171] = 5;
  const Buffer<float> dx(x), nans(std::vector<float>(kThreads, NAN));
  const Buffer<ArgMax> out(kThreads);
  run_block(kThreads, argmax_kernel, dx.data(), out.data());
  for (const ArgMax& a : out.values()) {
    EXPECT_EQ(a.index, 70);
    EXPECT_EQ(a.value, 5);
  }
  run_block(kThreads, argmax_kernel, nans.data(), out.data());
  for (const ArgMax& a : out.values()) EXPECT_TRUE(std::isnan(a.value) && a.index == 0) << a.index;
}

GPU_KERNEL(64) void arithmetic_kernel(const float* x, float* out) {
  const float v = x[thread()];
  float* to = out + thread() * 10;
  to[0] = exp(v);
  to[1] = fast_exp(v);
  to[2] = log(abs(v));
  to[3] = sqrt(abs(v));
  to[4] = rsqrt(abs(v));
  to[5] = fast_rcp(v);
  to[6] = floor(v);
  to[7] = min(v, NAN);
  to[8] = max(NAN, v);
  to[9] = fma(v, v, -v);
}

TEST(Arithmetic, IsAsAccurateAsPromised) {
  testing::Random random(3);
  std::vector<float> x(64);
  for (float& v : x) v = static_cast<float>(random.normal() * 20);
  const Buffer<float> dx(x), out(640);
  run_block(64, arithmetic_kernel, dx.data(), out.data());
  const auto got = out.values();
  for (size_t t = 0; t < 64; ++t) {
    const double v = x[t];
    const double want[10] = {std::exp(v),
                             std::exp(v),
                             std::log(std::abs(v)),
                             std::sqrt(std::abs(v)),
                             1 / std::sqrt(std::abs(v)),
                             1 / v,
                             std::floor(v),
                             v,
                             v,
                             std::fma(v, v, -v)};
    for (size_t i = 0; i < 10; ++i)
      ASSERT_NEAR(got[t * 10 + i], want[i], 1e-6 * std::abs(want[i])) << t << ' ' << i;
  }
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
