// Comparisons: bitwise with coordinates, and against float64 values within bounds.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>

#include "support/backend.h"

namespace trivium::testing {

// `nmse`: sum of squared errors over the sum of squares. `max_abs`: largest error in units of the largest
// value.
struct Bounds {
  double nmse, max_abs;
};

// float32 arithmetic with sums of a few hundred terms: 2^-24 a step, growing with the root of their number.
inline constexpr Bounds kF32{1e-12, 3e-6};
// One rounding to bfloat16 of inputs or outputs: 2^-9.
inline constexpr Bounds kBf16{2e-5, 8e-3};

inline void expect_close(const Tensor& got, std::span<const double> want, Bounds bounds,
                         const std::string& what) {
  const auto values = doubles_of(got);
  ASSERT_EQ(values.size(), want.size()) << what;
  double squares = 0, errors = 0, largest = 0, worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_TRUE(std::isfinite(values[i]))
        << what << ": element " << i << " is " << values[i] << ", expected " << want[i];
    const double error = std::abs(values[i] - want[i]);
    squares += want[i] * want[i];
    errors += error * error;
    largest = std::max(largest, std::abs(want[i]));
    if (error > worst) worst = error, at = i;
  }
  if (want.empty()) return;
  EXPECT_LE(errors, bounds.nmse * squares) << what;
  EXPECT_LE(worst, bounds.max_abs * largest)
      << what << ": element " << at << " is " << values[at] << ", expected " << want[at];
}

// Bit equality of two float32 ranges; NaN equals NaN.
inline void expect_same_bits(std::span<const float> got, std::span<const float> want,
                             const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(want[i])) continue;
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(float)), 0)
        << what << ": element " << i << " is " << got[i] << ", expected " << want[i];
  }
}

inline void expect_same_bits(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  expect_same_bits(values_of<float>(got), values_of<float>(want), what);
}

inline void expect_all_nan(std::span<const float> values, const std::string& what) {
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_TRUE(std::isnan(values[i])) << what << ": element " << i << " is " << values[i];
}

}  // namespace trivium::testing
