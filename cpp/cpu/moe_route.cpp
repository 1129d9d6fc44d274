// Expert choice, the permutation by expert, and the weighted sum over a token's experts on the CPU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace trivium::cpu {

void moe_route(const MoeRouteArgs& a) {
  parallel_for(a.tokens, [&](int64_t t, int) {
    const float* z = a.logits + t * a.num_experts;
    int32_t* experts = a.experts + t * a.top_k;
    float* weights = a.weights + t * a.top_k;
    // Insertion into a short sorted list; strict comparison keeps the lower index on ties. A NaN counts as
    // the largest, so that it reaches the weights instead of falling off the end.
    int64_t found = 0;
    for (int64_t e = 0; e < a.num_experts; ++e) {
      int64_t at = std::min(found, a.top_k);
      while (at > 0 && !std::isnan(weights[at - 1]) && !(weights[at - 1] >= z[e])) --at;
      if (at >= a.top_k) continue;
      for (int64_t i = std::min(found, a.top_k - 1); i > at; --i)
        experts[i] = experts[i - 1], weights[i] = weights[i - 1];
      experts[at] = static_cast<int32_t>(e);
      weights[at] = z[e];
      found = std::min(found + 1, a.top_k);
    }
    const float maximum = weights[0];
    float sum = 0;
    for (int64_t k = 0; k < a.top_k; ++k) sum += weights[k] = std::exp(weights[k] - maximum);
    for (int64_t k = 0; k < a.top_k; ++k) weights[k] /= sum;
  });
}

void moe_permute(const MoePermuteArgs& a) {
  const int64_t choices = a.tokens * a.top_k;
  std::fill(a.offsets, a.offsets + a.num_experts + 1, 0);
  for (int64_t i = 0; i < choices; ++i) ++a.offsets[a.experts[i] + 1];
  for (int64_t e = 0; e < a.num_experts; ++e) a.offsets[e + 1] += a.offsets[e];
  // Filling moves offsets[e] to the end of expert e; shifting back afterwards needs no second array.
  for (int64_t i = 0; i < choices; ++i) {
    const int32_t row = a.offsets[a.experts[i]]++;
    a.tokens_of_row[row] = static_cast<int32_t>(i / a.top_k);
    a.row_of_choice[i] = row;
  }
  for (int64_t e = a.num_experts; e > 0; --e) a.offsets[e] = a.offsets[e - 1];
  a.offsets[0] = 0;
}

void moe_combine(const MoeCombineArgs& a) {
  parallel_for(a.tokens, [&](int64_t t, int) {
    float* x = a.x + t * a.hidden;
    for (int64_t k = 0; k < a.top_k; ++k) {
      const float weight = a.weights[t * a.top_k + k];
      const float* y = a.y + static_cast<int64_t>(a.row_of_choice[t * a.top_k + k]) * a.hidden;
      for (int64_t i = 0; i < a.hidden; ++i) x[i] += weight * y[i];
    }
  });
}

}  // namespace trivium::cpu
