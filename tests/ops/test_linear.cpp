// Products of activations with weights in every storage format.
#include <cstdlib>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::Weight;

// [n, k] small integers in one of the storage formats, and their values.
struct TestWeight {
  Weight weight;
  Tensor values;  // f32 on the host
};

TestWeight integer_weight(WeightFormat format, int64_t n, int64_t k, uint64_t seed) {
  if (format == WeightFormat::mxfp4) {
    // Scales 128 and 129 make every E2M1 value an integer.
    const Tensor blocks = random_bytes({n, k / 32, 16}, seed),
                 scales = random_bytes({n, k / 32}, seed + 1, 128, 129);
    Tensor values = Tensor::empty({n, k}, Dtype::f32);
    for (int64_t i = 0; i < n * k; ++i) {
      const uint8_t byte = blocks.data_as<uint8_t>()[i / 2];
      const float scale = scales.data_as<uint8_t>()[i / 32] == 128 ? 2.0f : 4.0f;
      values.data_as<float>()[i] = kFp4Values[i % 2 ? byte >> 4 : byte & 15] * scale;
    }
    return {Weight::mxfp4(blocks.to(test_device()), scales.to(test_device()), "w"), values};
  }
  const Tensor values = random_integers({n, k}, seed);
  const Dtype dtype = format == WeightFormat::f32    ? Dtype::f32
                      : format == WeightFormat::bf16 ? Dtype::bf16
                                                     : Dtype::f16;
  return {Weight::dense(values.to(dtype).to(test_device()), "w"), values};
}

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16,
                                     WeightFormat::mxfp4};
constexpr Dtype kActivations[] = {Dtype::f32, Dtype::bf16};

std::string describe(WeightFormat format, Dtype activation, int64_t m, int64_t n, int64_t k) {
  return concat("format ", static_cast<int>(format), ", x ", activation, ", m ", m, ", n ", n, ", k ", k);
}

// x w^T + bias, exact for small integers.
std::vector<float> exact_product(const Tensor& x, const Tensor& w, const Tensor& bias) {
  const int64_t m = x.dim(0), n = w.dim(0), k = x.dim(1);
  std::vector<float> y(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias.data() ? bias.data_as<float>()[j] : 0;
      for (int64_t l = 0; l < k; ++l)
        sum += double{x.data_as<float>()[i * k + l]} * w.data_as<float>()[j * k + l];
      y[static_cast<size_t>(i * n + j)] = static_cast<float>(sum);
    }
  return y;
}

TEST(Linear, RunsTheLevelThatWasAskedFor) {
  const char* level = std::getenv("TRIVIUM_CPU_LEVEL");
  if (level && test_device().kind == DeviceKind::cpu) {
    EXPECT_EQ(cpu_level(), level);
  }
}

TEST(Linear, MatchesTheOracle) {
  const Golden golden("linear");
  for (int c = 0; golden.has(concat(c, ".x")); ++c) {
    const auto name = [&](const char* key) { return concat(c, '.', key); };
    for (const Dtype activation : kActivations) {
      const Tensor x = golden.host(name("x")).to(activation).to(test_device());
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        const Weight w = Weight::dense(golden.host(name("w")).to(dtype).to(test_device()), "w");
        const Tensor bias = golden.host(name("bias")).to(dtype).to(test_device());
        expect_close(ops::linear(x, w, bias), golden.doubles(name("y")), kF32,
                     concat(name("y "), activation, dtype));
      }
      if (!golden.has(name("blocks"))) continue;
      const Weight w = Weight::mxfp4(golden.device(name("blocks")), golden.device(name("scales")), "w");
      expect_close(ops::linear(x, w, golden.device(name("bias"))), golden.doubles(name("mxfp4_y")), kF32,
                   "mxfp4");
    }
  }
}

TEST(Linear, IntegerProductsAreExactForEveryShapeAndFormat) {
  for (const WeightFormat format : kFormats)
    for (const int64_t n : {1, 3, 8, 13, 37})
      for (const int64_t k : {1, 31, 40, 96, 161}) {
        if (format == WeightFormat::mxfp4 && k % 32 != 0) continue;
        const TestWeight w = integer_weight(format, n, k, static_cast<uint64_t>(n * 1000 + k));
        const Tensor bias = random_integers({n}, 5);
        for (int64_t m = 1; m <= 13; ++m) {
          const Tensor x = random_integers({m, k}, static_cast<uint64_t>(m));
          const auto want = exact_product(x, w.values, bias);
          for (const Dtype activation : kActivations) {
            const Tensor y =
                ops::linear(x.to(activation).to(test_device()), w.weight, bias.to(test_device()));
            expect_same_bits(values_of<float>(y), want, describe(format, activation, m, n, k));
          }
        }
      }
}

TEST(Linear, WritesItsColumnsOnlyAndAddsWhenAskedTo) {
  const int64_t m = 5, n = 7, k = 33, width = 16, column = 4;
  const TestWeight w = integer_weight(WeightFormat::bf16, n, k, 1);
  const Tensor x = random_integers({m, k}, 2), bias = random_integers({n}, 3),
               before = random_integers({m, width}, 4);
  const auto product = exact_product(x, w.values, bias);
  for (const bool accumulate : {false, true}) {
    Guarded y({m, width}, Dtype::f32);
    const Device device = test_device();
    runtime(device).copy(device.index, nullptr, y.data(), before.to(device).data(), before.nbytes());
    ops::linear(nullptr, x.to(device), w.weight, bias.to(device), y.tensor(), column, accumulate);
    y.expect_intact("linear");
    std::vector<float> want = values_of<float>(before);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        float& to = want[static_cast<size_t>(i * width + column + j)];
        to = product[static_cast<size_t>(i * n + j)] + (accumulate ? to : 0);
      }
    expect_same_bits(values_of<float>(y.tensor()), want, accumulate ? "accumulate" : "overwrite");
  }
}

TEST(Linear, ARowsBitsDoNotDependOnTheOtherRows) {
  const int64_t n = 45, k = 160, rows = 40;
  const Tensor all = random_normal({rows, k}, 7);
  for (const WeightFormat format : kFormats)
    for (const Dtype activation : kActivations) {
      Weight w = integer_weight(format, n, k, 9).weight;
      if (format != WeightFormat::mxfp4)
        w = Weight::dense(random_normal({n, k}, 8).to(w.data.dtype()).to(test_device()), "w");
      const Tensor x = all.to(activation);
      std::vector<float> single;
      for (int64_t i = 0; i < rows; ++i) {
        const auto row = values_of<float>(ops::linear(x.slice(i, i + 1).contiguous().to(test_device()), w));
        single.insert(single.end(), row.begin(), row.end());
      }
      for (int64_t m = 2; m <= rows; ++m)
        expect_same_bits(values_of<float>(ops::linear(x.slice(0, m).to(test_device()), w)),
                         std::span(single).first(static_cast<size_t>(m * n)),
                         describe(format, activation, m, n, k));
    }
}

TEST(Linear, BitsDoNotDependOnTheBlockingOfLongRows) {
  // 90 rows of 6000 values exceed the block of x rows that a task keeps in cache.
  const int64_t n = 5, k = 6000, rows = 90;
  const Weight w = Weight::dense(random_normal({n, k}, 1).to(Dtype::bf16).to(test_device()), "w");
  const Tensor x = random_normal({rows, k}, 2);
  const auto all = values_of<float>(ops::linear(x.to(test_device()), w));
  for (const int64_t i : {0, 11, 12, 47, 88, 89})
    expect_same_bits(values_of<float>(ops::linear(x.slice(i, i + 1).to(test_device()), w)),
                     std::span(all).subspan(static_cast<size_t>(i * n), n), concat("row ", i));
}

TEST(Linear, BitsDoNotDependOnTheNumberOfThreads) {
  const Weight w = Weight::dense(random_normal({333, 130}, 1).to(Dtype::bf16).to(test_device()), "w");
  const Tensor x = random_normal({9, 130}, 2).to(test_device());
  Tensor want;
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    const Tensor y = ops::linear(x, w);
    if (threads == 1) want = y;
    expect_same_bits(y, want, concat(threads, " threads"));
  }
}

TEST(Linear, NanInARowReachesTheWholeRowAndNoOther) {
  for (const WeightFormat format : kFormats)
    for (const Dtype activation : kActivations)
      for (const int64_t m : {1, 3, 9})
        for (const int64_t at : {0, 33, 63}) {
          Tensor x = random_integers({m, 64}, 1);
          x.data_as<float>()[(m - 1) * 64 + at] = NAN;
          const auto y = values_of<float>(
              ops::linear(x.to(activation).to(test_device()), integer_weight(format, 21, 64, 2).weight));
          const std::string what = describe(format, activation, m, 21, 64);
          expect_all_nan(std::span(y).last(21), what);
          for (size_t i = 0; i + 21 < y.size(); ++i) ASSERT_FALSE(std::isnan(y[i])) << what;
        }
}

TEST(Linear, EmptyMatricesGiveEmptyOrBiasOnlyResults) {
  const Device device = test_device();
  const auto dense = [&](const Shape& shape) {
    return Weight::dense(random_integers(shape, 1).to(device), "w");
  };
  EXPECT_EQ(ops::linear(random_integers({0, 5}, 1).to(device), dense({3, 5})).shape(), (Shape{0, 3}));
  EXPECT_EQ(ops::linear(random_integers({2, 5}, 1).to(device), dense({0, 5})).shape(), (Shape{2, 0}));
  const Tensor bias = random_integers({3}, 2);
  const auto y =
      values_of<float>(ops::linear(random_integers({1, 0}, 1).to(device), dense({3, 0}), bias.to(device)));
  expect_same_bits(y, values_of<float>(bias), "k = 0");
}

}  // namespace
}  // namespace trivium::testing
