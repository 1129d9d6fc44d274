// Picking tokens from logits, deterministically.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace trivium::ops {

// One row's sampling. The draw of the token with index `step` (0 = first generated) of a request depends
// only on logits, these values and step (Philox 4x32-10, key = seed, counter = step).
struct SamplingParams {
  float temperature = 0;  // 0 = greedy: the first maximum
  float top_p = 1;        // <= 0 or >= 1 disables
  int32_t top_k = 0;      // 0 disables
  float min_p = 0;        // 0 disables
  uint64_t seed = 0;
};

struct SampleRow {
  SamplingParams params;
  uint64_t step = 0;
};

// tokens[r] = the choice for logits row r. logits [rows, vocab] f32. A NaN in a row gives -1 for it.
void sample(const Tensor& logits, std::span<const SampleRow> rows, std::span<int32_t> tokens);

}  // namespace trivium::ops
