// Sine and cosine of a double without a math library, the same on every GPU: absolute error below 2e-16 for
// |x| < 2^31, the largest angle of a rotary embedding.
//
// Reduction by pi/2 in two parts (Cody & Waite 1980): the first has 33 bits, so that x - n * kPiHalf1 is
// exact in an fma; kPiHalf1 + kPiHalf2 differs from pi/2 by 4e-27. On [-pi/4, pi/4] the Taylor series up to
// x^17 and x^18 leave 1e-19.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

struct SinCos {
  double sin, cos;
};

GPU_DEVICE SinCos sincos(double x) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kPiHalf1 = 0x1.921fb544p+0,
                   kPiHalf2 = 0x1.0b4611a626331p-34;
  constexpr double kShift = 0x1.8p52;  // adding it rounds to an integer, which the low bits of the sum hold
  const double shifted = fma(x, kTwoOverPi, kShift), n = shifted - kShift;
  const auto quadrant = __builtin_bit_cast(uint64_t, shifted) & 3;
  const double r = fma(-n, kPiHalf2, fma(-n, kPiHalf1, x)), r2 = r * r;

  double s = 0x1.952c77030ad4ap-49;  // 1 / 17!
  s = fma(s, r2, -0x1.ae7f3e733b81fp-41);
  s = fma(s, r2, 0x1.6124613a86d09p-33);
  s = fma(s, r2, -0x1.ae64567f544e4p-26);
  s = fma(s, r2, 0x1.71de3a556c734p-19);
  s = fma(s, r2, -0x1.a01a01a01a01ap-13);
  s = fma(s, r2, 0x1.1111111111111p-7);
  s = fma(s, r2, -0x1.5555555555555p-3);
  const double sine = fma(s * r2, r, r);

  double c = -0x1.6827863b97d97p-53;  // -1 / 18!
  c = fma(c, r2, 0x1.ae7f3e733b81fp-45);
  c = fma(c, r2, -0x1.93974a8c07c9dp-37);
  c = fma(c, r2, 0x1.1eed8eff8d898p-29);
  c = fma(c, r2, -0x1.27e4fb7789f5cp-22);
  c = fma(c, r2, 0x1.a01a01a01a01ap-16);
  c = fma(c, r2, -0x1.6c16c16c16c17p-10);
  c = fma(c, r2, 0x1.5555555555555p-5);
  const double cosine = fma(r2 * r2, c, fma(-0.5, r2, 1.0));

  const double ps = quadrant & 1 ? cosine : sine, pc = quadrant & 1 ? sine : cosine;
  return {quadrant & 2 ? -ps : ps, (quadrant + 1) & 2 ? -pc : pc};
}

}  // namespace trivium::TRIVIUM_GPU_NS
