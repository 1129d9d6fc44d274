// What the families' forward() share: checking a batch, and decode steps that a GPU repeats as graphs.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "core/stream.h"
#include "models/model.h"

namespace trivium {

// Everything about a batch a kernel would trust; `check_segment` adds what the family asks of a segment whose
// slot exists. InvalidArgument says which segment or token, and what was expected.
void check_batch(const Batch& batch, const StateOptions& options, int64_t vocab_size,
                 const std::function<void(const Segment&)>& check_segment);

// Whether every segment is one token whose logits are asked for.
bool is_decode_step(const Batch& batch);

// Tokens a decode step of `count` sequences has on a GPU: a graph is kept for each of these sizes.
int64_t padded_batch(int64_t count);

// Writes a step's integers to staging, i32 [4, T] on the host: ids, slots, positions, rows that need logits.
// The tokens from the batch's on pad the step: id and position 0 of `padding_slot`. Returns the rows.
int64_t pack_tokens(const Batch& batch, int64_t tokens, int padding_slot, const Tensor& staging);

// Queues a copy from pinned memory to the device; without a stream both are one tensor.
void copy_inputs(Stream* stream, const Tensor& staging, Tensor& inputs);

// The decode steps of one set of states: the same kernels with the same arguments for every step of one
// padded size, so that they are recorded once and launched together afterwards.
class DecodeGraphs {
 public:
  // Does on the stream what `enqueue` does, for a step of `tokens`.
  void run(Stream& stream, int64_t tokens, const std::function<void()>& enqueue);

 private:
  struct Entry {
    bool ran = false;  // the first run is not recorded: it loads the kernels
    std::unique_ptr<Graph> graph;
  };
  std::map<int64_t, Entry> by_tokens_;
};

struct StepSize {
  bool decode;     // is_decode_step()
  int64_t tokens;  // padding included
  int64_t rows;    // of logits that are asked for
};

// Runs a step that `enqueue` puts on the stream (null on the CPU), then the batch's follow_up, and returns
// the rows of logits once all is done. A decode step runs as a graph and leaves them in the first rows of
// `logits`.
Tensor run_step(Stream* stream, DecodeGraphs& graphs, const Batch& batch, const StepSize& size,
                const Tensor& logits, const std::function<Tensor()>& enqueue);

}  // namespace trivium
