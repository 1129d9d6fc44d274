#include "ops/row_screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/parallel.h"
#include "core/registry.h"

namespace trivium::ops {
namespace {

constexpr int kLargest = 127;        // of kScreenLevels
constexpr float kSmallest = 1e-30f;  // rows below it would need care with subnormal numbers

int64_t row_bytes(int64_t k) {
  return (k + kScreenGroup - 1) / kScreenGroup * kScreenGroup * cpu_screen_bits() / 8;
}

float above(double x) {
  return std::nextafter(static_cast<float>(x), std::numeric_limits<float>::infinity());
}

// The code whose level is nearest to i - 127.
struct NearestCodes {
  uint8_t of[2 * kLargest + 1];
};
constexpr NearestCodes make_nearest_codes() {
  NearestCodes nearest{};
  for (int i = 0, code = 0; i <= 2 * kLargest; ++i) {
    const auto distance = [i](int c) {
      const int d = i - kLargest - kScreenLevels.of_code[c];
      return d < 0 ? -d : d;
    };
    while (code < 63 && distance(code + 1) < distance(code)) ++code;
    nearest.of[i] = static_cast<uint8_t>(code);
  }
  return nearest;
}
constexpr NearestCodes kNearestCodes = make_nearest_codes();

struct RowFigures {
  float step = 0, error = std::numeric_limits<float>::infinity(), norm = 0;
};

// Codes of at most eight values of [-127, 127], and what they cost.
template <int kBits>
uint64_t quantise_eight(const bf16* w, int count, float inverse, float* rest, float* square) {
  uint64_t bits = 0;
  for (int i = 0; i < count; ++i) {
    const float scaled = to_float(w[i]) * inverse;
    const int nearest = static_cast<int>(scaled + (kLargest + 0.5f));
    const uint8_t code = kNearestCodes.of[nearest];
    const int level = kBits == 6 ? int{kScreenLevels.of_code[code]} : nearest - kLargest;
    const auto value = static_cast<float>(level);
    *rest += (scaled - value) * (scaled - value);
    *square += value * value;
    bits |= uint64_t{kBits == 6 ? code : static_cast<uint8_t>(level)} << (kBits * i);
  }
  return bits;
}

// Fills codes where there are bounds.
template <int kBits>
RowFigures quantise(const bf16* w, int64_t k, uint8_t* codes) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < k; ++i) {
    const float magnitude = std::fabs(to_float(w[i]));
    finite &= magnitude <= std::numeric_limits<float>::max();
    largest = magnitude > largest ? magnitude : largest;
  }
  if (!finite || largest < kSmallest) return finite && largest == 0 ? RowFigures{.error = 0} : RowFigures{};
  const float step = largest / kLargest, inverse = 1 / step;
  double rest = 0, square = 0;
  constexpr int64_t kRun = 256;  // float sums stay short
  for (int64_t start = 0; start < k; start += kRun) {
    float rest_run = 0, square_run = 0;
    for (int64_t i = start; i < std::min(k, start + kRun); i += 8) {
      const uint64_t bits = quantise_eight<kBits>(w + i, static_cast<int>(std::min<int64_t>(8, k - i)),
                                                  inverse, &rest_run, &square_run);
      std::memcpy(codes + i / 8 * kBits, &bits, kBits);  // little-endian: the low bytes
    }
    rest += double{rest_run};
    square += double{square_run};
  }
  // The float sums are good to 1e-4, `scaled` to 2^-22 of at most 127; a float32 product of k terms to
  // (2k + 64) 2^-24 of |x| |w|, whatever its order and whether pairs are rounded.
  const double root = std::sqrt(static_cast<double>(k));
  const double copy = 1.001 * std::sqrt(rest) + kLargest * 0x1p-21 * root, norm = 1.001 * std::sqrt(square);
  const double rounding = (2.0 * static_cast<double>(k) + 64) * 0x1p-24 * (copy + norm);
  return {step, above(step * (copy + rounding)), above(step * norm)};
}

}  // namespace

RowScreenView RowScreen::view() const {
  return {codes.data_as<uint8_t>(), step.data_as<float>(), error.data_as<float>(), norm.data_as<float>(),
          codes.dim(1)};
}

int64_t RowScreen::bytes(const Shape& weight) {
  return weight[0] * (row_bytes(weight[1]) + 3 * static_cast<int64_t>(sizeof(float)));
}

RowScreen make_row_screen(const Weight& w, const CancelToken* cancel) {
  TRIVIUM_CHECK(w.format == WeightFormat::bf16 && w.shape.rank() == 2 && w.device().kind == DeviceKind::cpu,
                "make_row_screen: w is ", w.shape, " on ", w.device(),
                ", expected a bfloat16 matrix on the CPU");
  const int64_t n = w.shape[0], k = w.shape[1], bytes = row_bytes(k);
  RowScreen screen{Tensor::zeros({n, bytes}, Dtype::u8), Tensor::empty({n}, Dtype::f32),
                   Tensor::empty({n}, Dtype::f32), Tensor::empty({n}, Dtype::f32)};
  const bf16* from = w.data.data_as<bf16>();
  const auto figures_of = cpu_screen_bits() == 6 ? quantise<6> : quantise<8>;
  constexpr int64_t kRows = 256;
  parallel_for((n + kRows - 1) / kRows, [&](int64_t task, int) {
    if (cancel) cancel->check();
    for (int64_t r = task * kRows; r < std::min(n, (task + 1) * kRows); ++r) {
      const RowFigures figures = figures_of(from + r * k, k, screen.codes.data_as<uint8_t>() + r * bytes);
      screen.step.data_as<float>()[r] = figures.step;
      screen.error.data_as<float>()[r] = figures.error;
      screen.norm.data_as<float>()[r] = figures.norm;
    }
  });
  return screen;
}

void linear_maximum(const Tensor& x, const Weight& w, const RowScreen& screen, Tensor& y) {
  TRIVIUM_CHECK(x.rank() == 2 && w.shape.rank() == 2 && x.dim(1) == w.shape[1], "linear_maximum: x is ",
                x.shape(), " and w ", w.shape, ", expected [m, k] and [n, k]");
  TRIVIUM_CHECK(x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16, "linear_maximum: x is ", x.dtype(),
                ", expected float32 or bfloat16");
  TRIVIUM_CHECK(x.is_contiguous() && y.is_contiguous() && y.dtype() == Dtype::f32 && y.rank() == 2 &&
                    y.dim(0) == x.dim(0) && y.dim(1) == w.shape[0],
                "linear_maximum: y is ", y.shape(), " ", y.dtype(), ", expected a contiguous float32 ",
                Shape{x.dim(0), w.shape[0]});
  TRIVIUM_CHECK(w.format == WeightFormat::bf16 && screen.codes.rank() == 2 &&
                    screen.codes.dim(0) == w.shape[0] && screen.codes.dim(1) == row_bytes(w.shape[1]),
                "linear_maximum: the screen was not made of w ", w.shape);
  const LinearMaximumArgs args{.x = x.data(),
                               .w = w.view(),
                               .screen = screen.view(),
                               .y = y.data_as<float>(),
                               .m = x.dim(0),
                               .n = w.shape[0],
                               .k = w.shape[1],
                               .x_dtype = x.dtype()};
  call_kernel(x.device(), &Kernels::linear_maximum, "linear_maximum", nullptr, args);
}

}  // namespace trivium::ops
