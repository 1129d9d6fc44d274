// Launching a kernel, for CUDA and HIP. Included by the vendor headers after they have set TRIVIUM_GPU_NS.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "core/stream.h"

namespace trivium::TRIVIUM_GPU_NS {

using Stream = StreamHandle*;

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  Grid(int64_t width, int64_t height = 1, int64_t depth = 1) : x(width), y(height), z(depth) {}
};

struct LaunchShape {
  Grid grid;
  int block;
  int64_t shared_bytes = 0;
};

// runtime.cpp: `kernel` is the host side's address of the kernel, arguments[i] points at argument i.
void launch_kernel(Stream stream, const LaunchShape& shape, const void* kernel, void** arguments);

template <class... Parameters, class... Arguments>
void launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  std::apply(
      [&](auto&... value) {
        void* pointers[sizeof...(Parameters) + 1] = {const_cast<void*>(static_cast<const void*>(&value))...};
        launch_kernel(stream, shape, reinterpret_cast<const void*>(kernel), pointers);
      },
      values);
}

}  // namespace trivium::TRIVIUM_GPU_NS
