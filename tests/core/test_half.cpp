// 16-bit floats and MXFP4 scales against long-hand arithmetic in double.
#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace trivium {
namespace {

// A 16-bit format: sign, exponent, `fraction` bits, exponent bias.
struct Format {
  int fraction, bias;
  int max_exponent() const { return (1 << (15 - fraction)) - 1; }  // that of infinities and NaNs
};
constexpr Format kBf16{7, 127}, kF16{10, 15};

// The value of a bit pattern.
double value_of(uint16_t bits, Format f) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = (bits & 0x7fff) >> f.fraction, fraction = bits & ((1 << f.fraction) - 1);
  if (exponent == f.max_exponent()) return fraction ? std::nan("") : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - f.bias - f.fraction);
  return sign * std::ldexp((1 << f.fraction) + fraction, exponent - f.bias - f.fraction);
}

// x rounded to nearest even in the format, as a double.
double rounded(double x, Format f) {
  if (std::isnan(x) || std::isinf(x) || x == 0) return x;
  const int exponent = std::max(std::ilogb(x), 1 - f.bias);
  const double unit = std::ldexp(1, exponent - f.fraction);
  const double result = std::nearbyint(x / unit) * unit;
  const double largest = std::ldexp(2 - std::ldexp(1, -f.fraction), f.max_exponent() - 1 - f.bias);
  return std::abs(result) > largest ? std::copysign(HUGE_VAL, x) : result;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

void expect_rounds(float x) {
  EXPECT_TRUE(same(value_of(to_bf16(x).bits, kBf16), rounded(x, kBf16))) << std::hexfloat << x;
  EXPECT_TRUE(same(value_of(to_f16(x).bits, kF16), rounded(x, kF16))) << std::hexfloat << x;
}

TEST(Half, EveryPatternReadsAsItsValueAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<uint16_t>(bits);
    const float b = to_float(bf16{pattern}), h = to_float(f16{pattern});
    ASSERT_TRUE(same(b, value_of(pattern, kBf16))) << std::hex << bits;
    ASSERT_TRUE(same(h, value_of(pattern, kF16))) << std::hex << bits;
    ASSERT_TRUE(std::isnan(b) || to_bf16(b).bits == pattern) << std::hex << bits;
    ASSERT_TRUE(std::isnan(h) || to_f16(h).bits == pattern) << std::hex << bits;
  }
}

// Every neighbouring pair of patterns: their middle, and the floats just beside it.
TEST(Half, TiesGoToEvenAndTheirNeighboursToTheNearer) {
  for (const Format f : {kBf16, kF16})
    for (uint32_t bits = 0; bits < 0x7fffu && !HasFailure(); ++bits) {
      const double low = value_of(static_cast<uint16_t>(bits), f),
                   high = value_of(static_cast<uint16_t>(bits + 1), f);
      if (!std::isfinite(high)) continue;
      const auto middle = static_cast<float>((low + high) / 2);
      for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, HUGE_VALF)}) {
        expect_rounds(x);
        expect_rounds(-x);
      }
    }
}

TEST(Half, OverflowAndUnderflowAreWhereTheyShouldBe) {
  EXPECT_EQ(to_f16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(to_f16(std::nextafter(65520.0f, 0.0f)).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_f16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_f16(0x1p-25f).bits, 0);  // half the smallest subnormal is a tie with zero
  EXPECT_EQ(to_f16(std::nextafter(0x1p-25f, 1.0f)).bits, 1);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bf16(from_bits(0x7f7f7fff)).bits, 0x7f7f);
  EXPECT_EQ(to_bf16(from_bits(0x00008000)).bits, 0);
  EXPECT_EQ(to_bf16(from_bits(0x00008001)).bits, 1);
  for (const float x : {0.0f, HUGE_VALF, std::numeric_limits<float>::denorm_min(), 0x1p-126f}) {
    expect_rounds(x);
    expect_rounds(-x);
  }
}

TEST(Half, NanStaysAQuietNanWithItsSign) {
  for (const uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7f80ffffu}) {
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    EXPECT_EQ(to_bf16(from_bits(bits)).bits, sign | 0x7fc0) << std::hex << bits;
    EXPECT_EQ(to_f16(from_bits(bits)).bits, sign | 0x7e00) << std::hex << bits;
  }
}

TEST(Half, RandomFloatsRoundToNearestEven) {
  uint32_t bits = 1;
  for (int i = 0; i < 400000 && !HasFailure(); ++i) {
    bits = bits * 1664525u + 1013904223u;
    const float x = from_bits(bits);
    if (!std::isnan(x)) expect_rounds(x);
    expect_rounds(
        std::ldexp(1.0f + static_cast<float>(bits >> 9) * 0x1p-23f, static_cast<int>(bits >> 3 & 63) - 40));
  }
}

TEST(MxScale, IsAPowerOfTwoAndNanAt255) {
  for (int scale = 0; scale < 255; ++scale)
    EXPECT_EQ(mx_scale(static_cast<uint8_t>(scale)), std::ldexp(1.0, scale - 127)) << scale;
  EXPECT_TRUE(std::isnan(mx_scale(255)));
}

}  // namespace
}  // namespace trivium
