// Conversion between float types, and decoding of MXFP4.
#include <cstring>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

TEST(Convert, RoundsADoubleToSixteenBitsOnceNotTwice) {
  // Just above a tie: rounding to float first would land on the tie and go to even.
  const double tie = 1 + 0x1p-8, above = tie + 0x1p-40, half_tie = 1 + 0x1p-11;
  const Tensor x = device_tensor<double>({8}, {tie, above, -above, 1 + 3 * 0x1p-8 - 0x1p-40, half_tie,
                                               half_tie + 0x1p-40, 0x1p-25 + 0x1p-60, 1e300});
  const auto b = doubles_of(x.to(Dtype::bf16)), h = doubles_of(x.to(Dtype::f16));
  EXPECT_EQ(b[0], 1);
  EXPECT_EQ(b[1], 1 + 0x1p-7);
  EXPECT_EQ(b[2], -(1 + 0x1p-7));
  EXPECT_EQ(b[3], 1 + 0x1p-7);
  EXPECT_EQ(h[4], 1);
  EXPECT_EQ(h[5], 1 + 0x1p-10);
  EXPECT_EQ(h[6], 0x1p-24);
  EXPECT_TRUE(std::isinf(b[7]) && std::isinf(h[7]));
}

TEST(Convert, EveryPairOfFloatTypesKeepsRepresentableValues) {
  const Tensor x = random_integers({3, 37}, 1, -200, 200);
  const auto want = doubles_of(x);
  const Dtype dtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64};
  for (const Dtype from : dtypes)
    for (const Dtype to : dtypes) {
      const Tensor y = x.to(test_device()).to(from).to(to);
      EXPECT_EQ(y.dtype(), to);
      EXPECT_EQ(doubles_of(y), want) << from << " to " << to;
    }
  EXPECT_EQ(Tensor::empty({0}, Dtype::f32, test_device()).to(Dtype::bf16).numel(), 0);
}

TEST(Convert, WritesNothingPastTheLastElement) {
  const Tensor x = random_normal({13}, 1).to(test_device());
  for (const Dtype to : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64}) {
    Guarded y({13}, to);
    const ConvertArgs args{x.data(), y.data(), 13, Dtype::f32, to};
    call_kernel(test_device(), &Kernels::convert, "convert", nullptr, args);
    y.expect_intact("convert");
  }
}

TEST(Convert, IntegersAreRefusedByName) {
  expect_error([] { Tensor::zeros({2}, Dtype::i32, test_device()).to(Dtype::f32); }, {"convert", "int32"});
  expect_error([] { Tensor::zeros({2}, Dtype::f32, test_device()).to(Dtype::u8); }, {"convert", "uint8"});
}

TEST(Mxfp4Decode, EveryByteAtEveryKindOfScaleIsExact) {
  const Golden golden("mxfp4");
  const auto y = values_of<float>(ops::mxfp4_decode(golden.device("0.blocks"), golden.device("0.scales")));
  const auto want = golden.doubles("0.y");
  ASSERT_EQ(y.size(), want.size());
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_EQ(y[i], want[i]) << "element " << i;  // exact: every product fits in a float
    ASSERT_EQ(std::signbit(y[i]), std::signbit(want[i])) << "element " << i;
  }
}

TEST(Mxfp4Decode, Scale255IsNan) {
  const Tensor blocks = random_bytes({1, 1, 16}, 1), scales = random_bytes({1, 1}, 1, 255, 255);
  expect_all_nan(values_of<float>(ops::mxfp4_decode(blocks.to(test_device()), scales.to(test_device()))),
                 "scale 255");
}

TEST(Mxfp4Decode, WritesItsRowsOnlyAndKeepsLeadingDimensions) {
  const Tensor blocks = random_bytes({3, 5, 2, 16}, 1).to(test_device()),
               scales = random_bytes({3, 5, 2}, 2, 120, 130).to(test_device());
  Guarded y({15, 64}, Dtype::f32);
  const Mxfp4DecodeArgs args{blocks.data_as<uint8_t>(), scales.data_as<uint8_t>(),
                             static_cast<float*>(y.data()), 15, 64};
  call_kernel(test_device(), &Kernels::mxfp4_decode, "mxfp4_decode", nullptr, args);
  y.expect_intact("mxfp4_decode");
  const Tensor decoded = ops::mxfp4_decode(blocks, scales);
  EXPECT_EQ(decoded.shape(), (Shape{3, 5, 64}));
  expect_same_bits(y.tensor(), decoded.reshape({15, 64}), "rows");
  const Tensor none = Tensor::empty({0, 2, 16}, Dtype::u8, test_device());
  EXPECT_EQ(ops::mxfp4_decode(none, Tensor::empty({0, 2}, Dtype::u8, test_device())).shape(), (Shape{0, 64}));
}

}  // namespace
}  // namespace trivium::testing
