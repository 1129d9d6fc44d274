// Picking tokens from logits, deterministically.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/stream.h"
#include "core/tensor.h"

namespace trivium::ops {

// One row's sampling. Candidates stand in order of descending logit, then ascending id, and weigh
// exp((logit - maximum) / temperature). min_p drops those of less weight than min_p, top_k keeps the first
// top_k, top_p the shortest prefix with more than top_p of the weight that is left; the draw is the first
// candidate whose running weight is more than u times the total. A maximum that is infinite is taken at once.
//
// The draw of the token with index `step` (0 = first generated) of a request depends
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

// Samples again and again with memory of its own, so that a step allocates nothing: parameters and tokens
// travel through pinned host memory.
class Sampler {
 public:
  Sampler(Device device, int64_t max_rows);
  // As sample() below, for finished logits on the sampler's device; valid until the next call.
  std::span<const int32_t> sample(const Tensor& logits, std::span<const SampleRow> rows);
  // The same behind the work that computes the logits, on its stream (null on the CPU). Between this call and
  // the end of that work, which the caller waits for, no other call may be made; then tokens() has them.
  void enqueue(Stream* stream, const Tensor& logits, std::span<const SampleRow> rows);
  std::span<const int32_t> tokens() const;

 private:
  int64_t max_rows_, count_ = 0;
  Tensor host_params_, params_;  // u8 [max_rows, sizeof(SampleParams)]
  Tensor host_tokens_, tokens_;  // i32 [max_rows]
  std::unique_ptr<Stream> stream_;
};

// tokens[r] = the choice for logits row r. logits [rows, vocab] f32. A NaN in a row gives -1 for it.
void sample(const Tensor& logits, std::span<const SampleRow> rows, std::span<int32_t> tokens);

}  // namespace trivium::ops
