// Matrix products for what a GPU backend decides by itself: launch shapes, row blocks of experts, weight
// decoding.
#include "ops/ops.h"
#include "support/compare.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::Weight;

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16,
                                     WeightFormat::mxfp4};
constexpr Dtype kActivations[] = {Dtype::f32, Dtype::bf16};

// [.., cols] in a storage format.
Weight random_weight(WeightFormat format, const Shape& shape, uint64_t seed) {
  if (format == WeightFormat::mxfp4) {
    std::vector<int64_t> dims(shape.begin(), shape.end());
    dims.back() /= kMxBlock;
    const Shape scales{std::span<const int64_t>(dims)};
    dims.push_back(kMxBlockBytes);
    return Weight::mxfp4(random_bytes(Shape{std::span<const int64_t>(dims)}, seed).to(test_device()),
                         random_bytes(scales, seed + 1, 120, 124).to(test_device()), "w");
  }
  const Dtype dtype = format == WeightFormat::f32    ? Dtype::f32
                      : format == WeightFormat::bf16 ? Dtype::bf16
                                                     : Dtype::f16;
  return Weight::dense(random_normal(shape, seed).to(dtype).to(test_device()), "w");
}

std::string describe(WeightFormat format, Dtype activation, int64_t k) {
  return concat("format ", static_cast<int>(format), ", x ", activation, ", k ", k);
}

// Two products over sorted rows: rows [0, offsets[1]) belong to expert 0 and so on.
struct Grouped {
  Weight weight;  // [num_experts, n, k]
  Tensor bias;    // [num_experts, n]
  int64_t experts() const { return weight.shape[0]; }
  int64_t n() const { return weight.shape[1]; }
  int64_t k() const { return weight.shape[2]; }

  std::vector<float> down(const Tensor& x, const std::vector<int32_t>& offsets) const {
    const int64_t rows = x.dim(0);
    const Tensor y = Tensor::empty({rows, n()}, Dtype::f32, test_device());
    const Tensor at = device_tensor<int32_t>({experts() + 1}, offsets);
    const MoeDownArgs args{.act = x.data(),
                           .w = weight.view(),
                           .bias = {bias.data(), bias.dtype()},
                           .offsets = at.data_as<int32_t>(),
                           .y = y.data_as<float>(),
                           .rows = rows,
                           .num_experts = experts(),
                           .hidden = n(),
                           .inter = k(),
                           .dtype = x.dtype()};
    call_kernel(test_device(), &Kernels::moe_down, "moe_down", nullptr, args);
    return values_of<float>(y);
  }
  // Row r reads x row tokens[r].
  std::vector<float> gate_up(const Tensor& x, const std::vector<int32_t>& tokens,
                             const std::vector<int32_t>& offsets) const {
    const auto rows = static_cast<int64_t>(tokens.size());
    const Tensor act = Tensor::empty({rows, n() / 2}, x.dtype(), test_device());
    const Tensor at = device_tensor<int32_t>({experts() + 1}, offsets),
                 of_row = device_tensor<int32_t>({rows}, tokens);
    const MoeGateUpArgs args{.x = x.data(),
                             .w = weight.view(),
                             .bias = {bias.data(), bias.dtype()},
                             .offsets = at.data_as<int32_t>(),
                             .tokens_of_row = of_row.data_as<int32_t>(),
                             .act = act.data(),
                             .rows = rows,
                             .num_experts = experts(),
                             .hidden = k(),
                             .inter = n() / 2,
                             .alpha = 1.702f,
                             .limit = 7.0f,
                             .dtype = x.dtype()};
    call_kernel(test_device(), &Kernels::moe_gate_up, "moe_gate_up", nullptr, args);
    return values_of<float>(act.to(Device{}).to(Dtype::f32));
  }
};

TEST(Products, AnExpertsRowsHaveTheSameBitsInEveryLaunchShape) {
  for (const WeightFormat format : kFormats)
    for (const Dtype activation : kActivations)
      for (const int64_t k :
           {32, 416, 1120}) {   // one product of a step; 4 chunks and a tail; 5 chunks of 2 steps
        const int64_t n = 150;  // more than a block's columns
        const Grouped g{random_weight(format, {2, n, k}, 1),
                        random_normal({2, n}, 2).to(Dtype::bf16).to(test_device())};
        const int32_t first = 67, rows = 75;  // two blocks of 64 rows, tiles of 16 that are not full
        const Tensor x = random_normal({rows, k}, 3).to(activation);
        const auto all = g.down(x.to(test_device()), {0, first, rows});
        std::vector<int32_t> tokens(rows);
        for (int32_t r = 0; r < rows; ++r) tokens[static_cast<size_t>(r)] = (7 * r + 3) % rows;
        const auto all_up = g.gate_up(x.to(test_device()), tokens, {0, first, rows});
        for (const int32_t r : {0, 1, 15, 16, 40, 63, 64, 66, 67, 74}) {
          const std::vector<int32_t> alone =
              r < first ? std::vector<int32_t>{0, 1, 1} : std::vector<int32_t>{0, 0, 1};
          const std::string what = describe(format, activation, k) + concat(", row ", r);
          const int32_t token = tokens[static_cast<size_t>(r)];
          expect_same_bits(std::span(all).subspan(static_cast<size_t>(r * n), static_cast<size_t>(n)),
                           g.down(x.slice(r, r + 1).to(test_device()), alone), "moe_down " + what);
          expect_same_bits(
              std::span(all_up).subspan(static_cast<size_t>(r * n / 2), static_cast<size_t>(n / 2)),
              g.gate_up(x.slice(token, token + 1).to(test_device()), {0}, alone), "moe_gate_up " + what);
        }
      }
}

TEST(Products, ADenseLayersRowsHaveTheSameBitsInEveryLaunchShape) {
  // So many columns that a GPU takes 64 rows at a time from 33 rows on, and 32 rows from 17 on.
  const int64_t n = 12200, k = 160;
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::mxfp4}) {
    const Weight w = random_weight(format, {n, k}, 1);
    const Tensor bias = random_normal({n}, 2).to(test_device());
    const Tensor x = random_normal({35, k}, 3).to(Dtype::bf16);
    const auto all = values_of<float>(ops::linear(x.to(test_device()), w, bias));
    for (const int64_t rows : {1, 16, 17, 32})
      expect_same_bits(std::span(all).first(static_cast<size_t>(rows * n)),
                       values_of<float>(ops::linear(x.slice(0, rows).to(test_device()), w, bias)),
                       concat("format ", static_cast<int>(format), ", ", rows, " rows"));
  }
}

TEST(Products, FewRowsHaveTheSameBitsForAnyNumberOfColumns) {
  // A GPU gives a warp 16 or 32 columns of 4-bit weights, by how many there are.
  const int64_t n = 33000, k = 160, few = 48;
  const Weight w = random_weight(WeightFormat::mxfp4, {n, k}, 1);
  const Weight first = Weight::mxfp4(w.data.slice(0, few), w.scales.slice(0, few), "w");
  const Tensor x = random_normal({3, k}, 2).to(Dtype::bf16).to(test_device());
  const auto all = values_of<float>(ops::linear(x, w)), part = values_of<float>(ops::linear(x, first));
  for (int64_t r = 0; r < 3; ++r)
    expect_same_bits(std::span(all).subspan(static_cast<size_t>(r * n), static_cast<size_t>(few)),
                     std::span(part).subspan(static_cast<size_t>(r * few), static_cast<size_t>(few)),
                     concat("row ", r));
}

TEST(Products, IntegerProductsOfManyRowsAreExact) {
  const int64_t n = 135, k = 288;
  const int32_t rows = 90, first = 70;
  const Tensor w = random_integers({2, n, k}, 1), x = random_integers({rows, k}, 2),
               bias = random_integers({2, n}, 3);
  std::vector<float> want(static_cast<size_t>(rows * n));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = (r < first ? 0 : n) + i;
      float sum = bias.data_as<float>()[row];
      for (int64_t j = 0; j < k; ++j) sum += x.data_as<float>()[r * k + j] * w.data_as<float>()[row * k + j];
      want[static_cast<size_t>(r * n + i)] = sum;
    }
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const Dtype activation : kActivations) {
      const Grouped g{Weight::dense(w.to(dtype).to(test_device()), "w"), bias.to(test_device())};
      expect_same_bits(g.down(x.to(activation).to(test_device()), {0, first, rows}), want,
                       concat("w ", dtype, ", x ", activation));
    }
}

TEST(Products, RowsThatNoExpertHasAreNotWritten) {
  // A padded batch: the sorted rows end before the launch's upper bound. Experts without rows lie in between.
  const int64_t n = 34, k = 64, rows = 60;
  for (const Dtype activation : kActivations) {
    const Grouped g{random_weight(WeightFormat::mxfp4, {5, n, k}, 1),
                    random_normal({5, n}, 2).to(test_device())};
    const Tensor x = random_normal({rows, k}, 3).to(activation).to(test_device());
    const Tensor offsets = device_tensor<int32_t>({6}, {0, 0, 30, 30, 41, 41});
    Guarded y({rows, n}, Dtype::f32);
    const MoeDownArgs args{.act = x.data(),
                           .w = g.weight.view(),
                           .bias = {g.bias.data(), g.bias.dtype()},
                           .offsets = offsets.data_as<int32_t>(),
                           .y = static_cast<float*>(y.data()),
                           .rows = rows,
                           .num_experts = 5,
                           .hidden = n,
                           .inter = k,
                           .dtype = activation};
    const auto before = values_of<float>(y.tensor());
    call_kernel(test_device(), &Kernels::moe_down, "moe_down", nullptr, args);
    y.expect_intact("moe_down");
    const auto after = values_of<float>(y.tensor());
    for (size_t i = 0; i < after.size(); ++i)
      ASSERT_EQ(after[i] == before[i], i >= static_cast<size_t>(41 * n))
          << "row " << i / static_cast<size_t>(n);
  }
}

TEST(Products, EveryScaleAndCodeOfMxfp4IsExact) {
  // Scale s in row s, every code in both nibbles, against the columns of the identity. Below 2^-124 tensor
  // cores may flush; from scale 253 on values leave bfloat16.
  const int64_t low = 4, high = 252, n = high - low + 1, k = 32;
  Tensor blocks = Tensor::empty({n, 1, kMxBlockBytes}, Dtype::u8), scales = Tensor::empty({n, 1}, Dtype::u8);
  std::vector<float> want(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n; ++i) {
    scales.data_as<uint8_t>()[i] = static_cast<uint8_t>(low + i);
    for (int64_t j = 0; j < kMxBlockBytes; ++j) {
      const auto even = static_cast<size_t>(j), odd = static_cast<size_t>((5 * j + 3) % 16);
      blocks.data_as<uint8_t>()[i * kMxBlockBytes + j] = static_cast<uint8_t>(even | odd << 4);
      const float scale = mx_scale(static_cast<uint8_t>(low + i));
      want[static_cast<size_t>(2 * j * n + i)] = kFp4Values[even] * scale;
      want[static_cast<size_t>((2 * j + 1) * n + i)] = kFp4Values[odd] * scale;
    }
  }
  Tensor identity = Tensor::zeros({k, k}, Dtype::f32);
  for (int64_t i = 0; i < k; ++i) identity.data_as<float>()[i * k + i] = 1;
  const Weight w = Weight::mxfp4(blocks.to(test_device()), scales.to(test_device()), "w");
  for (const Dtype activation : kActivations) {
    const auto y = values_of<float>(ops::linear(identity.to(activation).to(test_device()), w));
    for (size_t i = 0; i < y.size(); ++i)
      ASSERT_EQ(y[i], want[i]) << "scale " << i % static_cast<size_t>(n) + low << ", element "
                               << i / static_cast<size_t>(n) << ", x " << activation;
  }
}

}  // namespace
}  // namespace trivium::testing
