// The soft cap of gates and logits.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

// (1 - u) / (1 + u), u = e^-2|x|. Near 0 the difference would lose what a small x has to say: there 1 - u is
// Kahan's 2 |x| (1 - u) / -log(u), in which the rounding of u cancels.
GPU_DEVICE float tanh_of(float x) {
  const float twice = 2.0f * abs(x), u = exp(-twice);
  float above = 1.0f - u;
  if (twice < 1.0f) above = u == 1.0f ? twice : above * (twice / -log(u));
  const float t = above / (1.0f + u);
  return x < 0 ? -t : isnan(x) ? x : t;
}

// cap tanh(x / cap); 0: no cap.
GPU_DEVICE float soft_capped(float x, float cap) { return cap > 0 ? cap * tanh_of(x / cap) : x; }

}  // namespace trivium::TRIVIUM_GPU_NS
