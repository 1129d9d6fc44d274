// RMSNorm, SwiGLU and embedding rows.
#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

TEST(RmsNorm, MatchesTheOracle) {
  const Golden golden("rms_norm");
  for (int c = 0; golden.has(concat(c, ".x")); ++c) {
    const auto name = [&](const char* key) { return concat(c, '.', key); };
    const auto want = golden.doubles(name("y"));
    for (const Dtype gain : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      const Tensor w = golden.host(name("w")).to(gain).to(test_device());
      expect_close(ops::rms_norm(golden.device(name("x")), w, 1e-5f), want, kF32, name("f32"));
      const Tensor x16 = golden.host(name("x")).to(Dtype::bf16).to(test_device());
      expect_close(ops::rms_norm(x16, w, 1e-5f), want, kBf16, name("bf16"));
    }
  }
}

TEST(RmsNorm, RoundsOnceWhenTheOutputIsBfloat16) {
  const Tensor x = random_normal({3, 77}, 1).to(test_device()), w = random_normal({77}, 2).to(test_device());
  Guarded wide({3, 77}, Dtype::f32), narrow({3, 77}, Dtype::bf16);
  ops::rms_norm(nullptr, x, w, 1e-5f, wide.tensor());
  ops::rms_norm(nullptr, x, w, 1e-5f, narrow.tensor());
  expect_same_bits(narrow.tensor().to(Dtype::f32), wide.tensor().to(Dtype::bf16).to(Dtype::f32), "rounding");
  wide.expect_intact("rms_norm to float32");
  narrow.expect_intact("rms_norm to bfloat16");
}

TEST(RmsNorm, WritesNothingPastTheLastElement) {
  for (const int64_t dim : {1, 3, 15, 16, 17, 31, 97})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      Guarded y({2, dim}, dtype);
      ops::rms_norm(nullptr, random_normal({2, dim}, 1).to(test_device()),
                    random_normal({dim}, 2).to(test_device()), 1e-5f, y.tensor());
      y.expect_intact("rms_norm");
    }
}

TEST(RmsNorm, ARowsBitsDependOnThatRowAlone) {
  const Tensor x = random_normal({40, 131}, 3), w = random_normal({131}, 4).to(test_device());
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    const Tensor all = ops::rms_norm(x.to(test_device()), w, 1e-6f);
    for (int64_t r = 0; r < 40; ++r)
      expect_same_bits(ops::rms_norm(x.slice(r, r + 1).to(test_device()), w, 1e-6f),
                       all.to(Device{}).slice(r, r + 1), concat("row ", r, ", ", threads, " threads"));
  }
}

TEST(RmsNorm, NanFillsItsRow) {
  Tensor x = random_normal({3, 37}, 5);
  x.data_as<float>()[37 + 36] = NAN;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor y =
        ops::rms_norm(x.to(dtype).to(test_device()), random_normal({37}, 6).to(test_device()), 1e-5f);
    const auto values = values_of<float>(y.to(Dtype::f32));
    expect_all_nan(std::span(values).subspan(37, 37), "rms_norm");
    for (size_t i = 0; i < 37; ++i) EXPECT_FALSE(std::isnan(values[i]) || std::isnan(values[74 + i]));
  }
}

TEST(RmsNorm, ZerosStayZeroAndEmptyStaysEmpty) {
  const Tensor w = random_normal({9}, 1).to(test_device());
  for (const float y :
       values_of<float>(ops::rms_norm(Tensor::zeros({2, 9}, Dtype::f32, test_device()), w, 1e-5f)))
    EXPECT_EQ(y, 0);
  EXPECT_EQ(ops::rms_norm(Tensor::empty({0, 9}, Dtype::f32, test_device()), w, 1e-5f).numel(), 0);
  const Tensor none = Tensor::empty({3, 0}, Dtype::f32, test_device());
  EXPECT_EQ(ops::rms_norm(none, Tensor::empty({0}, Dtype::f32, test_device()), 1e-5f).numel(), 0);
}

void fill_from(const Tensor& host, Tensor& to) {
  const Device device = to.device();
  const Status status = runtime(device).copy(device.index, nullptr, to.data(), host.data(), host.nbytes());
  ASSERT_EQ(status, Status::ok);
}

TEST(AddRmsNorm, MatchesTheOracleAndLeavesTheSumInX) {
  const Golden golden("add_rms_norm");
  for (int c = 0; golden.has(concat(c, ".x")); ++c) {
    const auto name = [&](const char* key) { return concat(c, '.', key); };
    const Tensor from = golden.host(name("x"));
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      Guarded x(from.shape(), Dtype::f32), y(from.shape(), dtype);
      fill_from(from, x.tensor());
      ops::add_rms_norm(nullptr, x.tensor(), golden.device(name("add")), golden.device(name("w")), 1e-5f,
                        y.tensor());
      expect_close(x.tensor(), golden.doubles(name("total")), kF32, name("sum"));
      expect_close(y.tensor(), golden.doubles(name("y")), dtype == Dtype::f32 ? kF32 : kBf16, name("y"));
      x.expect_intact("add_rms_norm: x"), y.expect_intact("add_rms_norm: y");
    }
  }
}

TEST(AddRmsNorm, HasTheBitsOfAddingFirstInEveryRow) {
  for (const int64_t dim : {1, 4, 131, 2052}) {
    const Tensor x = random_normal({5, dim}, 1), add = random_normal({5, dim}, 2);
    const Tensor w = random_normal({dim}, 3).to(test_device());
    Tensor sum = Tensor::empty({5, dim}, Dtype::f32);
    for (int64_t i = 0; i < x.numel(); ++i)
      sum.data_as<float>()[i] = x.data_as<float>()[i] + add.data_as<float>()[i];
    const Tensor want = ops::rms_norm(sum.to(test_device()), w, 1e-5f).to(Device{});
    for (const auto& [begin, end] : {std::pair{0, 5}, {1, 2}, {3, 5}}) {
      Tensor part = Tensor::empty({end - begin, dim}, Dtype::f32, test_device());
      Tensor y = Tensor::empty(part.shape(), Dtype::f32, test_device());
      fill_from(x.slice(begin, end), part);
      ops::add_rms_norm(nullptr, part, add.slice(begin, end).to(test_device()), w, 1e-5f, y);
      expect_same_bits(part, sum.slice(begin, end), concat("sum, dim ", dim));
      expect_same_bits(y, want.slice(begin, end), concat("y, dim ", dim));
    }
  }
}

TEST(Swiglu, MatchesTheOracle) {
  const Golden golden("swiglu");
  expect_close(ops::swiglu(golden.device("0.x")), golden.doubles("0.y"), kF32, "alpha 1.702, limit 7");
  expect_close(ops::swiglu(golden.device("1.x"), 1.0f, 2.5f), golden.doubles("1.y"), kF32,
               "alpha 1, limit 2.5");
}

TEST(Swiglu, ClampsTheGateFromAboveAndTheLinearPartFromBothSides) {
  // gate, linear; alpha 0 makes the sigmoid 1/2
  const Tensor x = device_tensor<float>({4, 2}, {100, 0, -100, 0, 2, 100, 2, -100});
  EXPECT_EQ(values_of<float>(ops::swiglu(x, 0.0f, 7.0f)), (std::vector<float>{3.5, -50, 8, -6}));
}

TEST(Swiglu, BitsDoNotDependOnThePlaceInTheRow) {
  const Tensor x = random_normal({1, 2 * 53}, 1, 5);
  const auto all = values_of<float>(ops::swiglu(x.to(test_device())));
  for (int64_t i = 0; i < 53; ++i) {
    const float pair[] = {x.data_as<float>()[2 * i], x.data_as<float>()[2 * i + 1]};
    const auto one = values_of<float>(ops::swiglu(host_tensor<float>({1, 2}, pair).to(test_device())));
    expect_same_bits(one, std::span(all).subspan(static_cast<size_t>(i), 1), concat("pair ", i));
  }
}

TEST(Swiglu, NanInEitherInputGivesNan) {
  const Tensor x = device_tensor<float>({1, 6}, {NAN, 1, 1, NAN, 1, 1});
  const auto y = values_of<float>(ops::swiglu(x));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
  EXPECT_FALSE(std::isnan(y[2]));
}

TEST(Swiglu, WritesNothingPastTheLastElement) {
  for (const int64_t dim : {1, 5, 8, 16, 33})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = random_normal({3, 2 * dim}, 1).to(test_device());
      Guarded y({3, dim}, dtype);
      const SwigluArgs args{x.data_as<float>(), y.data(), 3, dim, 1.702f, 7.0f, dtype};
      call_kernel(test_device(), &Kernels::swiglu, "swiglu", nullptr, args);
      y.expect_intact("swiglu");
      expect_same_bits(y.tensor().to(Dtype::f32), ops::swiglu(x).to(dtype).to(Dtype::f32), "rounding");
    }
  EXPECT_EQ(ops::swiglu(Tensor::empty({0, 4}, Dtype::f32, test_device())).shape(), (Shape{0, 2}));
  EXPECT_EQ(ops::swiglu(Tensor::empty({2, 0}, Dtype::f32, test_device())).shape(), (Shape{2, 0}));
}

TEST(Embedding, CopiesRowsExactlyFromEveryStorageType) {
  const Tensor table = random_integers({11, 7}, 1);
  const std::vector<int32_t> ids{3, 0, 10, 3};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    Guarded y({4, 7}, Dtype::f32);
    ops::embedding(nullptr, device_tensor<int32_t>({4}, ids), table.to(dtype).to(test_device()), y.tensor());
    y.expect_intact("embedding");
    const auto values = values_of<float>(y.tensor());
    for (size_t t = 0; t < 4; ++t)
      for (size_t i = 0; i < 7; ++i)
        EXPECT_EQ(values[t * 7 + i], table.data_as<float>()[static_cast<size_t>(ids[t]) * 7 + i]);
  }
  const Tensor none = Tensor::empty({0}, Dtype::i32, test_device());
  EXPECT_EQ(ops::embedding(none, table.to(test_device())).shape(), (Shape{0, 7}));
}

}  // namespace
}  // namespace trivium::testing
