// The double-precision sine and cosine of the GPU backends against the 64-bit mantissas of the host's
// library.
#include "cuda/sincos.cuh"

#include <cmath>

#include "emu_support.h"
#include "support/inputs.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

GPU_KERNEL(64)
void sincos_kernel(const double* x, double* y, int count) {
  const int i = static_cast<int>(blockIdx.x) * 64 + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const SinCos v = sincos(x[i]);
  y[2 * i] = v.sin, y[2 * i + 1] = v.cos;
}

// Largest absolute error over `angles`.
double worst_error(const std::vector<double>& angles) {
  const Buffer<double> x(angles), y(2 * angles.size());
  const Queue queue;
  const auto count = static_cast<int>(angles.size());
  launch(queue.get(), {.grid = ceil_div(count, 64), .block = 64}, sincos_kernel, x.data(), y.data(), count);
  queue.synchronize();
  const auto got = y.values();
  long double worst = 0;
  for (size_t i = 0; i < angles.size(); ++i) {
    const auto angle = static_cast<long double>(angles[i]);
    worst = std::max(worst, std::abs(static_cast<long double>(got[2 * i]) - std::sin(angle)));
    worst = std::max(worst, std::abs(static_cast<long double>(got[2 * i + 1]) - std::cos(angle)));
  }
  return static_cast<double>(worst);
}

TEST(SinCos, AnglesOfEveryMagnitudeAndSign) {
  testing::Random random(1);
  std::vector<double> angles{0.0, -0.0};
  for (const double range : {1e-300, 1e-9, 0.8, 7.0, 1000.0, 0x1p18, 0x1p31})
    for (int i = 0; i < 4000; ++i) angles.push_back(range * (2 * random.uniform() - 1));
  EXPECT_LT(worst_error(angles), 2e-16);
}

TEST(SinCos, AnglesNextToMultiplesOfAQuarterTurn) {
  testing::Random random(2);
  std::vector<double> angles;
  for (int i = 0; i < 8000; ++i) {
    double angle = static_cast<double>(i < 64 ? i : random.integer(64, 1 << 20)) * (M_PI / 4);
    for (int64_t step = random.integer(-3, 3); step; step += step < 0 ? 1 : -1)
      angle = std::nextafter(angle, step < 0 ? -1e9 : 1e9);
    angles.push_back(angle);
  }
  EXPECT_LT(worst_error(angles), 2e-16);
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
