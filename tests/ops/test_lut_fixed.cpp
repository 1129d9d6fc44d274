// Fixed point at the ends of its range (lut.md 7.2): y and gx are sums of 64 bits, a weight gradient's sum of
// 32 stays at the end that it would leave, on every backend with the same bits.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

constexpr double kUnit = (1 << 20) - 1;  // quanta of a value of 1 with int_rescaler 1
constexpr float kEnd = static_cast<float>(0x7fffffff / kUnit);

// Every sample addresses row 1 of each of 4 tables: all compare x0 > x1.
LutCase uniform(int64_t batch, float weight) {
  lut::LayerOptions o;
  o.inputs = 2;
  o.outputs = 3;
  o.anchors = host_i32({4, 1, 2}, {0, 1, 0, 1, 0, 1, 0, 1});
  o.int_rescaler = 1;
  o.group_size = 1;
  LutCase c(o, batch, 1);
  for (int64_t i = 0; i < c.x.numel(); ++i) c.x.data_as<float>()[i] = i % 2 ? 0.0f : 1.0f;
  for (int64_t i = 0; i < c.w.numel(); ++i) c.w.data_as<float>()[i] = i / 3 % 2 ? weight : 0.0f;
  return c;
}

void set_gy(LutCase& c, const std::vector<float>& of_sample) {
  for (int64_t i = 0; i < c.gy.numel(); ++i)
    c.gy.data_as<float>()[i] = of_sample[static_cast<size_t>(i / c.options.outputs)];
}

std::vector<float> row_one(const Tensor& gw) {
  const auto values = values_of<float>(gw);
  for (size_t t = 0; t < 4; ++t)
    for (size_t k = 0; k < 3; ++k) {
      EXPECT_EQ(values[t * 6 + k], 0) << "row 0 of table " << t;
      EXPECT_EQ(values[t * 6 + 3 + k], values[3]);
    }
  return {values[3]};
}

TEST(LutFixed, OutputsAndInputGradientsBeyondThirtyTwoBitsAreExact) {
  for (const float weight : {1500.0f, -1500.0f}) {  // 1.57e9 quanta a table, 6.3e9 in all
    LutCase c = uniform(2, weight);
    const auto forward = c.forward();
    for (const float v : values_of<float>(forward.y)) EXPECT_EQ(v, 4 * weight);
    set_gy(c, {16, 16});
    // delta of a table: slope 1/8 at u = 1, times 3 outputs.
    const float want = 4 * 0.125f * 3 * 16 * weight;
    EXPECT_GT(std::abs(want), kEnd);
    EXPECT_EQ(values_of<float>(c.backward(forward.saved).gx), (std::vector<float>{want, -want, want, -want}));
  }
}

TEST(LutFixed, WeightGradientsStayAtTheEndsOfTheirRange) {
  LutCase c = uniform(4, 1);
  const auto saved = c.forward().saved;
  const auto gradient = [&](const std::vector<float>& gy) {
    set_gy(c, gy);
    const float dense = row_one(c.backward(saved).gw)[0];
    const auto rows = c.backward(saved, {.policy = lut::WeightPolicy::rows});
    for (const float v : values_of<float>(rows.gw)) EXPECT_EQ(v, dense);
    return dense;
  };
  EXPECT_EQ(gradient({500, 500, 500, 500}), 2000);
  EXPECT_EQ(gradient({600, 600, 600, 600}), kEnd);
  EXPECT_EQ(gradient({-600, -600, -600, -600}), -kEnd);
  EXPECT_EQ(gradient({1e30f, 0, 0, 0}), kEnd);
  EXPECT_EQ(gradient({-INFINITY, 0, 0, 0}), -kEnd);
  EXPECT_EQ(gradient({NAN, 3, 0, 0}), 3);  // a NaN has no quanta
  // Samples are added in their order, from where the sum stopped.
  EXPECT_EQ(gradient({3000, -1, 0, 0}), static_cast<float>((0x7fffffff - kUnit) / kUnit));
  EXPECT_EQ(gradient({-1, 3000, 0, 0}), kEnd);
}

// The sums of sequences in whole quanta: one contribution of y is a table's sum over the pairs of a position,
// one of gW is a pair's.
TEST(LutFixed, SequencesAreExactIntegerSums) {
  for (const int64_t npe : {0, 2}) {
    constexpr double kRescaler = 0.5, kScale = kUnit * kRescaler;
    constexpr int64_t kTables = 3, kLength = 5, kOutputs = 5;
    LutCase c(sequence_layer(6, kTables, 2, npe, kOutputs, kLength), 2, 7);
    c.options.int_rescaler = kRescaler;
    c.rebuild();
    const auto forward = c.forward();
    const auto index = values_of<int32_t>(forward.saved.index);
    const auto pe = npe ? values_of<int32_t>(forward.saved.pe_index) : std::vector<int32_t>();
    const float *w = c.w.data_as<float>(), *gy = c.gy.data_as<float>();
    std::vector<float> y;
    std::vector<int64_t> gw(static_cast<size_t>(c.w.numel()));
    for (int64_t row = 0; row < 2 * kLength; ++row)
      for (int64_t o = 0; o < kOutputs; ++o) {
        int64_t sum = 0;
        for (int64_t t = 0; t < kTables; ++t) {
          double part = 0;
          for (int64_t d = row % kLength; d > 0; --d) {
            const int64_t later = index[static_cast<size_t>(row * kTables + t)];
            const int64_t earlier = index[static_cast<size_t>((row - d) * kTables + t)];
            const int64_t e = npe ? pe[static_cast<size_t>((d - 1) * kTables + t)] : 0;
            const int64_t cell = later << (2 + npe) | earlier << npe | e;
            const int64_t at = (t * c.layer->cells() + cell) * kOutputs + o;
            part += double{w[at]};
            gw[static_cast<size_t>(at)] += static_cast<int64_t>(double{gy[row * kOutputs + o]} * kScale);
          }
          sum += static_cast<int64_t>(part * kScale);
        }
        y.push_back(static_cast<float>(static_cast<double>(sum) / kScale));
      }
    expect_same_bits(values_of<float>(forward.y), y, "y");
    std::vector<float> want;
    for (const int64_t quanta : gw) want.push_back(static_cast<float>(static_cast<double>(quanta) / kScale));
    expect_same_bits(values_of<float>(c.backward(forward.saved).gw), want, "gw");
  }
}

// Random layers whose gradients leave the range in places: all backends stop at the same sums.
TEST(LutFixed, OverflowHasTheCpusBits) {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(5, 3, 2, 33), 9, 1);
  cases.emplace_back(sequence_layer(5, 3, 1, 1, 9, 6), 2, 2);
  cases.emplace_back(product_layer(3, 3, 2, 2, 5, 5, false), 2, 3);
  cases.emplace_back(rows_layer(5, 3, 2, 33), 9, 4);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row + o) % 3 == 0; }, false);
  for (LutCase& c : cases) {
    for (int64_t i = 0; i < c.gy.numel(); ++i) c.gy.data_as<float>()[i] *= 1000;
    c.options.int_rescaler = 1;
    c.rebuild();
    const auto forward = c.forward();
    const auto gradients = c.backward(forward.saved);
    float largest = 0;
    for (const float v : values_of<float>(gradients.gw)) largest = std::max(largest, std::abs(v));
    EXPECT_EQ(largest, kEnd);
    const lut::Layer layer(c.options, Device{});
    lut::Workspace work{Device{}};
    const auto cpu = lut::forward(layer, c.w, c.x, c.pe, true, work);
    const auto want = lut::backward(layer, c.w, c.gy, cpu.saved, {}, work);
    expect_same(gradients.gx, want.gx, "gx");
    expect_same(gradients.gw, want.gw, "gw");
    if (c.pe.rank()) expect_same(gradients.gpe, want.gpe, "gpe");
  }
}

}  // namespace
}  // namespace trivium::testing
