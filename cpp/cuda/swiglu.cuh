// The clamped SwiGLU of gpt-oss for one pair of values.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

// g sigmoid(alpha g) (u + 1), g = min(gate, limit), u = clamp(linear, -limit, limit). The comparisons keep a
// NaN.
GPU_DEVICE float swiglu_value(float gate, float linear, float alpha, float limit) {
  const float g = gate > limit ? limit : gate;
  const float u = linear > limit ? limit : linear < -limit ? -limit : linear;
  return g / (1.0f + exp(-alpha * g)) * (u + 1.0f);
}

}  // namespace trivium::TRIVIUM_GPU_NS
