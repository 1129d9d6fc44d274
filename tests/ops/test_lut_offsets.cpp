// Offsets into tables of more than 2^31 weights. Only the pages that are touched are backed by memory.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

constexpr int64_t kWide = 700;  // outputs of a row

// Zeros, of which memory backs what is written; undefined where the address space cannot be had.
Tensor sparse_zeros(const Shape& shape) {
  const auto bytes = static_cast<size_t>((shape.numel() * 4 + 63) / 64 * 64);
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) return {};
  return Tensor::wrap(memory, shape, Dtype::f32, Device{},
                      std::shared_ptr<void>(memory, [](void* p) { std::free(p); }));
}

class LutOffsets : public ::testing::Test {
 protected:
  void SetUp() override {
    if (is_gpu(test_device().kind))
      GTEST_SKIP() << "reserves address space without memory: the cpu alone can";
  }
};

TEST_F(LutOffsets, RowsBeyondTwoToTheThirtyOneWeightsAreAddressed) {
  lut::LayerOptions o = rows_layer(8, 3, 20, kWide);
  const lut::Layer layer(o, test_device());
  const int64_t count = layer.weight_shape().numel();
  ASSERT_GT(count, int64_t{1} << 31);
  const Tensor w = sparse_zeros(layer.weight_shape());
  if (!w.data()) GTEST_SKIP() << "no address space for " << (count >> 28) << " GiB";
  lut::Workspace work(test_device());
  const Tensor x = random_normal({2, 8}, 1);
  const auto first = lut::forward(layer, w, x, {}, true, work);
  const auto index = values_of<int32_t>(first.saved.index);
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t t = 0; t < 3; ++t)
      w.data_as<float>()[(t * layer.cells() + index[static_cast<size_t>(b * 3 + t)]) * kWide + 699] =
          static_cast<float>(1 << (3 * b + t));
  const auto y = values_of<float>(lut::forward(layer, w, x, {}, true, work).y);
  EXPECT_EQ(y[699], 7);
  EXPECT_EQ(y[1399], 56);
  Tensor gy = Tensor::zeros({2, kWide}, Dtype::f32);
  gy.data_as<float>()[699] = gy.data_as<float>()[1399] = 1;
  const auto g = lut::backward(layer, w, gy, first.saved, {.policy = lut::WeightPolicy::rows}, work);
  EXPECT_EQ(values_of<int64_t>(g.rows).size(), 6u);
  EXPECT_EQ(inner(g.gw, g.gw), 6);
  lut::backward(layer, w, gy, first.saved, {.policy = lut::WeightPolicy::internal, .eta = 1}, work);
  EXPECT_EQ(values_of<float>(lut::forward(layer, w, x, {}, true, work).y)[699], 4);
}

TEST_F(LutOffsets, PairsBeyondTwoToTheThirtyOneWeightsAreAddressed) {
  const lut::Layer layer(sequence_layer(8, 4, 9, 2, kWide, 4), test_device());
  const int64_t count = layer.weight_shape().numel();
  ASSERT_GT(count, int64_t{1} << 31);
  const Tensor w = sparse_zeros(layer.weight_shape());
  if (!w.data()) GTEST_SKIP() << "no address space for " << (count >> 28) << " GiB";
  lut::Workspace work(test_device());
  const Tensor x = random_normal({1, 2, 8}, 1), pe = random_normal(layer.pe_shape(), 2);
  const auto saved = lut::forward(layer, w, x, pe, true, work).saved;
  const auto index = values_of<int32_t>(saved.index), e = values_of<int32_t>(saved.pe_index);
  int64_t last = 0;
  for (int64_t t = 0; t < 4; ++t) {  // the pair (0, 1)
    const auto at = static_cast<size_t>(t);
    const int64_t cell = int64_t{index[4 + at]} << 11 | index[at] << 2 | e[at];
    last = ((t * layer.cells() + cell) * kWide) + kWide - 1;
    w.data_as<float>()[last] = static_cast<float>(1 << t);
  }
  ASSERT_GT(last, int64_t{1} << 31);
  EXPECT_EQ(values_of<float>(lut::forward(layer, w, x, pe, true, work).y)[2 * kWide - 1], 15);
  Tensor gy = Tensor::zeros({1, 2, kWide}, Dtype::f32);
  gy.data_as<float>()[2 * kWide - 1] = 1;
  const auto g = lut::backward(layer, w, gy, saved, {.policy = lut::WeightPolicy::rows}, work);
  EXPECT_EQ(values_of<int64_t>(g.rows).size(), 4u);
  EXPECT_EQ(inner(g.gw, g.gw), 4);
  EXPECT_GT(inner(g.gx, g.gx), 0);
  auto cache = lut::make_cache(layer, 1, 2);
  const Tensor y =
      lut::decode(layer, w, x.reshape({2, 8}), pe, host_i32({2}, {0, 0}), host_i32({2}, {0, 1}), cache, work);
  EXPECT_EQ(values_of<float>(y)[2 * kWide - 1], 15);
  lut::backward(layer, w, gy, saved, {.policy = lut::WeightPolicy::internal, .eta = 1}, work);
  EXPECT_EQ(w.data_as<float>()[last], 7);
}

}  // namespace
}  // namespace trivium::testing
