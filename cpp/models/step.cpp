#include "models/step.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "core/registry.h"

namespace trivium {

void check_batch(const Batch& batch, const StateOptions& options, int64_t vocab_size,
                 const std::function<void(const Segment&)>& check_segment) {
  int64_t total = 0;
  std::vector<bool> seen(static_cast<size_t>(options.num_slots));
  for (const Segment& s : batch.segments) {
    TRIVIUM_CHECK(s.slot >= 0 && s.slot < options.num_slots, "forward: slot ", s.slot, " of ",
                  options.num_slots);
    TRIVIUM_CHECK(!seen[static_cast<size_t>(s.slot)], "forward: slot ", s.slot, " appears twice");
    seen[static_cast<size_t>(s.slot)] = true;
    check_segment(s);
    total += s.count;
  }
  TRIVIUM_CHECK(total == static_cast<int64_t>(batch.tokens.size()), "forward: ", batch.tokens.size(),
                " tokens, but segments of ", total);
  TRIVIUM_CHECK(total <= options.max_step_tokens, "forward: ", total, " tokens, at most ",
                options.max_step_tokens, " fit in a step");
  for (size_t i = 0; i < batch.tokens.size(); ++i)
    TRIVIUM_CHECK(batch.tokens[i] >= 0 && batch.tokens[i] < vocab_size, "forward: token ", i, " is ",
                  batch.tokens[i], ", the vocabulary has ", vocab_size);
}

bool is_decode_step(const Batch& batch) {
  return std::all_of(batch.segments.begin(), batch.segments.end(),
                     [](const Segment& s) { return s.count == 1 && s.logits != Segment::Logits::none; });
}

int64_t padded_batch(int64_t count) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
}

int64_t pack_tokens(const Batch& batch, int64_t tokens, int padding_slot, const Tensor& staging) {
  const int64_t width = staging.dim(1);
  int32_t *ids = staging.data_as<int32_t>(), *slots = ids + width, *positions = slots + width,
          *rows = positions + width;
  int64_t t = 0, count = 0;
  for (const Segment& s : batch.segments) {
    for (int64_t i = 0; i < s.count; ++i, ++t) {
      ids[t] = batch.tokens[static_cast<size_t>(t)];
      slots[t] = s.slot;
      positions[t] = static_cast<int32_t>(s.start + i);
      if (s.wants(i)) rows[count++] = static_cast<int32_t>(t);
    }
  }
  for (; t < tokens; ++t) {
    ids[t] = positions[t] = 0;
    slots[t] = padding_slot;
  }
  return count;
}

void copy_inputs(Stream* stream, const Tensor& staging, Tensor& inputs) {
  if (!stream) return;
  const Device device = stream->device();
  const Status status =
      runtime(device).copy(device.index, stream->handle(), inputs.data(), staging.data(), staging.nbytes());
  if (status != Status::ok) throw_status(device.kind, status);
}

void DecodeGraphs::run(Stream& stream, int64_t tokens, const std::function<void()>& enqueue) {
  Entry& entry = by_tokens_[tokens];
  if (!Graph::supported(stream.device()) || !std::exchange(entry.ran, true)) return enqueue();
  if (!entry.graph) entry.graph = std::make_unique<Graph>(stream, enqueue);
  entry.graph->launch(stream);
}

Tensor run_step(Stream* stream, DecodeGraphs& graphs, const Batch& batch, const StepSize& size,
                const Tensor& logits, const std::function<Tensor()>& enqueue) {
  if (!stream) return enqueue().slice(0, size.rows);
  Tensor out;
  try {
    if (size.decode) {
      graphs.run(*stream, size.tokens, [&] { enqueue(); });
      out = logits.slice(0, size.rows);
    } else {
      out = enqueue().slice(0, size.rows);
    }
    if (batch.follow_up && size.rows > 0) batch.follow_up(*stream, out);
  } catch (...) {
    // What is queued still reads the staging memory, which the next step writes.
    runtime(stream->device()).stream_synchronize(stream->handle());
    throw;
  }
  stream->synchronize();
  return out;
}

}  // namespace trivium
