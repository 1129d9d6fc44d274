// For tests of "linear, not quadratic": CPU time, so that a busy machine does not fail them, and the factor
// by which sanitizers and unoptimised builds are slower.
#pragma once

#include <ctime>

namespace trivium::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
inline constexpr double kSlower = 20;
#else
inline constexpr double kSlower = 1;
#endif

inline double cpu_seconds_of(const auto& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace trivium::testing
