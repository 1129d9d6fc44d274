// Properties of LUT layers that hold for any weights (lut.md 11.3), and finite differences.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

std::vector<LutCase> all_modes(uint64_t seed, bool integers = false) {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(7, 5, 3, 6, seed), 3, seed, integers);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 5, 5, seed), 2, seed, integers);
  cases.emplace_back(sequence_layer(6, 3, 2, 0, 5, 4, seed), 2, seed, integers);
  cases.emplace_back(product_layer(4, 3, 3, 2, 5, 4, false, seed), 2, seed, integers);
  cases.emplace_back(product_layer(3, 2, 3, 3, 4, 4, true, seed), 2, seed, integers);
  cases.emplace_back(rows_layer(7, 5, 3, 6, seed), 3, seed, integers);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row * 5 + o * 3) % 7 < 3; }, false);
  cases.emplace_back(sequence_layer(6, 3, 2, 1, 9, 5, seed), 2, seed, integers);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row + o) % 3 == 0; }, true);
  return cases;
}

double objective(const LutCase& c) { return inner(c.forward(false).y, c.gy); }

TEST(LutProperties, TheOutputIsLinearInTheWeights) {
  for (const LutCase& c : all_modes(1)) {
    const auto forward = c.forward();
    const auto gradients = c.backward(forward.saved);
    EXPECT_NEAR(inner(gradients.gw, c.w), inner(c.gy, forward.y), 1e-4);
    LutCase half = c;
    half.w = Tensor::empty(c.w.shape(), Dtype::f32);
    for (int64_t i = 0; i < c.w.numel(); ++i) half.w.data_as<float>()[i] = c.w.data_as<float>()[i] / 2;
    const auto y = doubles_of(forward.y), z = doubles_of(half.forward().y);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(z[i], y[i] / 2);
  }
}

TEST(LutProperties, ZeroWeightsStillLearn) {
  for (LutCase c : all_modes(2)) {
    c.w = Tensor::zeros(c.w.shape(), Dtype::f32);
    const auto forward = c.forward();
    const auto gradients = c.backward(forward.saved);
    EXPECT_EQ(inner(forward.y, forward.y), 0);
    EXPECT_EQ(inner(gradients.gx, gradients.gx), 0);
    EXPECT_GT(inner(gradients.gw, gradients.gw), 0);
  }
}

TEST(LutProperties, FiniteDifferencesInTheWeightsMatch) {
  for (LutCase& c : all_modes(20)) {
    const auto gw = values_of<float>(c.backward(c.forward().saved).gw);
    const double before = objective(c);
    for (int64_t i = 0; i < c.w.numel(); i += 1 + c.w.numel() / 29) {
      float& w = c.w.data_as<float>()[i];
      w += 1;
      EXPECT_NEAR(objective(c) - before, gw[static_cast<size_t>(i)], 2e-5 * (1 + std::abs(before)));
      w -= 1;
    }
  }
}

TEST(LutProperties, InputGradientsOfASampleSumToZero) {
  for (const LutCase& c : all_modes(3)) {
    const auto gradients = c.backward(c.forward().saved);
    const auto gx = doubles_of(gradients.gx);
    double total = 0, size = 0;
    for (const double v : gx) total += v, size += std::abs(v);
    if (c.layer->is_product())
      for (const double v : doubles_of(gradients.gpe)) total += v;
    EXPECT_NEAR(total, 0, 1e-5 * (1 + size));
    const int64_t inputs = c.options.inputs;
    for (int64_t row = 0; row < static_cast<int64_t>(gx.size()) / inputs && !c.layer->is_product(); ++row) {
      double sum = 0;
      for (int64_t i = 0; i < inputs; ++i) sum += gx[static_cast<size_t>(row * inputs + i)];
      EXPECT_NEAR(sum, 0, 1e-5 * (1 + size)) << "position " << row;
    }
  }
}

TEST(LutProperties, AMonotoneMapOfTheInputsKeepsTheOutput) {
  for (const bool sequence : {false, true}) {
    LutCase c(sequence ? sequence_layer(6, 4, 3, 2, 5, 6) : rows_layer(8, 6, 4, 7), 3, 4);
    const auto before = c.forward();
    const auto gx = values_of<float>(c.backward(before.saved).gx);
    for (int64_t i = 0; i < c.x.numel(); ++i) c.x.data_as<float>()[i] = std::exp(c.x.data_as<float>()[i]);
    const auto after = c.forward();
    expect_same(after.y, before.y, "y");
    EXPECT_NE(values_of<float>(c.backward(after.saved).gx), gx) << "the slope depends on the differences";
  }
}

TEST(LutProperties, SwappedAnchorsAddressComplementedCells) {
  LutCase c(rows_layer(8, 5, 3, 6), 4, 5);
  const auto before = c.forward();
  const Tensor gx = c.backward(before.saved).gx;
  for (int64_t i = 0; i < c.options.anchors.numel(); i += 2)
    std::swap(c.options.anchors.data_as<int32_t>()[i], c.options.anchors.data_as<int32_t>()[i + 1]);
  const int64_t cells = c.layer->cells(), outputs = c.options.outputs;
  const Tensor w = Tensor::empty(c.w.shape(), Dtype::f32);
  for (int64_t i = 0; i < w.numel(); ++i) {
    const int64_t o = i % outputs, cell = i / outputs % cells, t = i / outputs / cells;
    w.data_as<float>()[i] = c.w.data_as<float>()[(t * cells + cells - 1 - cell) * outputs + o];
  }
  c.w = w;
  c.rebuild();
  const auto after = c.forward();
  expect_same(after.y, before.y, "y");
  expect_same(c.backward(after.saved).gx, gx, "gx");
}

TEST(LutProperties, PermutedTablesGiveTheSameSums) {
  LutCase c(rows_layer(8, 6, 3, 6), 4, 6, true);  // integers: sums are exact in any order
  const auto y = c.forward(false).y;
  LutCase p = c;
  p.options.anchors = Tensor::empty(c.options.anchors.shape(), Dtype::i32);
  p.w = Tensor::empty(c.w.shape(), Dtype::f32);
  for (int64_t t = 0; t < 6; ++t) {
    const int64_t from = (t * 5 + 2) % 6, anchors = c.options.anchors.numel() / 6, weights = c.w.numel() / 6;
    std::copy_n(c.options.anchors.data_as<int32_t>() + from * anchors, anchors,
                p.options.anchors.data_as<int32_t>() + t * anchors);
    std::copy_n(c.w.data_as<float>() + from * weights, weights, p.w.data_as<float>() + t * weights);
  }
  p.rebuild();
  expect_same(p.forward(false).y, y, "y");
}

TEST(LutProperties, TheOrderOfSparseRowsIsOfNoConsequence) {
  const auto keep = [](int64_t row, int64_t o) { return (row / 8 * 3 + row % 8 + o) % 3 == 0; };
  LutCase c(rows_layer(8, 4, 3, 6), 4, 7, true);  // 4 tables of 8 cells
  LutCase p = c;
  p.options.anchors = Tensor::empty({4, 3, 2}, Dtype::i32);
  p.w = Tensor::empty(c.w.shape(), Dtype::f32);
  for (int64_t t = 0; t < 4; ++t) {
    const int64_t from = 3 - t, weights = c.w.numel() / 4;
    std::copy_n(c.options.anchors.data_as<int32_t>() + from * 6, 6,
                p.options.anchors.data_as<int32_t>() + t * 6);
    std::copy_n(c.w.data_as<float>() + from * weights, weights, p.w.data_as<float>() + t * weights);
  }
  make_sparse(c, keep, false);
  make_sparse(
      p, [&](int64_t row, int64_t o) { return keep((3 - row / 8) * 8 + row % 8, o); }, false);
  const auto a = c.forward(), b = p.forward();
  expect_same(b.y, a.y, "y");
  const auto g = c.backward(a.saved), h = p.backward(b.saved);
  expect_close(h.gx, doubles_of(g.gx), kLut, "gx");  // tables are added in their order
  EXPECT_EQ(inner(h.gw, h.gw), inner(g.gw, g.gw));
}

TEST(LutProperties, AtMostTwoInputsATableGetAGradient) {
  LutCase c(rows_layer(40, 3, 4, 6), 5, 7);
  const auto gx = doubles_of(c.backward(c.forward().saved).gx);
  for (int64_t b = 0; b < 5; ++b) {
    const auto row = gx.begin() + b * 40;
    EXPECT_LE(std::count_if(row, row + 40, [](double v) { return v != 0; }), 6);
  }
}

TEST(LutProperties, EvaluationHasTheBitsOfTraining) {
  for (const LutCase& c : all_modes(8)) expect_same(c.forward(false).y, c.forward(true).y, "y");
}

TEST(LutProperties, ResultsRepeatBitForBitWhateverTheThreads) {
  std::vector<LutCase> cases = all_modes(9);
  for (LutCase c : all_modes(9)) {
    c.options.int_rescaler = 1;
    c.rebuild();
    cases.push_back(c);
  }
  for (const LutCase& c : cases) {
    const auto first = c.forward();
    const auto gradients = c.backward(first.saved);
    for (int threads = 1; threads <= 4; ++threads) {
      const Threads scope(threads);
      const auto again = c.forward();
      const auto same = c.backward(again.saved);
      expect_same(again.y, first.y, "y");
      expect_same(same.gx, gradients.gx, "gx");
      expect_same(same.gw, gradients.gw, "gw");
      if (c.pe.rank()) expect_same(same.gpe, gradients.gpe, "gpe");
    }
  }
}

TEST(LutProperties, WithoutAGradientOfTheOutputThereIsNone) {
  for (LutCase c : all_modes(10)) {
    c.gy = Tensor::zeros(c.gy.shape(), Dtype::f32);
    const auto g = c.backward(c.forward().saved);
    EXPECT_EQ(inner(g.gx, g.gx), 0);
    EXPECT_EQ(inner(g.gw, g.gw), 0);
    if (c.pe.rank()) {
      EXPECT_EQ(inner(g.gpe, g.gpe), 0);
    }
  }
}

TEST(LutProperties, ARowsBitsDependOnThatRowAlone) {
  const LutCase c(rows_layer(9, 11, 4, 21), 21, 11);
  const Tensor all = c.forward(false).y.to(Device{});
  for (int64_t b = 0; b < c.batch; ++b) {
    LutCase one = c;
    one.batch = 1;
    one.x = c.x.slice(b, b + 1);
    expect_same(one.forward(false).y, all.slice(b, b + 1), concat("row ", b));
  }
}

TEST(LutProperties, HeadsAreTablesOfOneLayer) {
  LutCase both(rows_layer(8, 6, 3, 5), 4, 12, true);
  const int64_t weights = both.w.numel() / 6;
  std::vector<double> sum(static_cast<size_t>(4 * 5));
  for (int64_t head = 0; head < 2; ++head) {
    LutCase one(rows_layer(8, 3, 3, 5), 4, 12, true);
    one.x = both.x;
    one.options.anchors = both.options.anchors.slice(head * 3, head * 3 + 3).contiguous();
    one.w = host_tensor<float>(
        {3, 8, 5}, std::span(both.w.data_as<float>() + head * 3 * weights, static_cast<size_t>(3 * weights)));
    one.rebuild();
    const auto y = doubles_of(one.forward(false).y);
    for (size_t i = 0; i < y.size(); ++i) sum[i] += y[i];
  }
  EXPECT_EQ(doubles_of(both.forward(false).y), sum);
}

}  // namespace
}  // namespace trivium::testing
