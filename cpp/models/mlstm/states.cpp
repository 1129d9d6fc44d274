#include <algorithm>

#include "core/registry.h"
#include "models/mlstm/model.h"

namespace trivium::xlstm {
namespace {

struct Buffer {
  Tensor Workspace::*tensor;
  Shape shape;
  Dtype dtype;
};

// Sizes that several buffers share.
struct Extents {
  int64_t batch, tokens, segments, further;
  Extents(const StateOptions& o, Device device) {
    const bool gpu = is_gpu(device.kind);
    batch = gpu ? padded_batch(o.num_slots) : o.num_slots;
    tokens = std::max<int64_t>(o.max_step_tokens, gpu ? batch : 1);
    segments = std::min<int64_t>(batch, tokens);
    further = gpu ? mlstm_most_further_chunks(segments, tokens) : 0;
  }
};

constexpr int64_t kSegmentInts = sizeof(MlstmSegment) / sizeof(int32_t);

std::vector<Buffer> buffers(const XlstmConfig& c, const StateOptions& o, Dtype activation, Device device) {
  const Extents e(o, device);
  const int64_t T = e.tokens, state = mlstm_chunk_state_floats(c.num_heads, c.head_qk(), c.head_v());
  using W = Workspace;
  return {{&W::inputs, {2 * T + kSegmentInts * e.segments + e.further}, Dtype::i32},
          {&W::x, {T, c.hidden_size}, Dtype::f32},
          {&W::normed, {T, c.hidden_size}, activation},
          {&W::qkvo, {T, 2 * c.qk_dim + 2 * c.v_dim}, Dtype::f32},
          {&W::gates, {T, 2 * c.num_heads}, Dtype::f32},
          {&W::chunk_states, {e.further, state}, Dtype::f32},
          {&W::h, {T, c.v_dim}, Dtype::f32},
          {&W::gated, {T, c.v_dim}, activation},
          {&W::up, {T, 2 * c.intermediate_size}, Dtype::f32},
          {&W::act, {T, c.intermediate_size}, activation},
          {&W::chosen, {T, c.hidden_size}, Dtype::f32},
          {&W::logits, {e.batch, c.vocab_size}, Dtype::f32}};
}

}  // namespace

Workspace::Workspace(const XlstmConfig& c, const StateOptions& o, Dtype activation, Device device) {
  for (const Buffer& b : buffers(c, o, activation, device))
    this->*b.tensor = Tensor::empty(b.shape, b.dtype, device);
  staging = is_gpu(device.kind) ? Tensor::pinned(inputs.shape(), Dtype::i32, device) : inputs;
  // What a step leaves unused is copied too.
  std::fill_n(staging.data_as<int32_t>(), staging.numel(), 0);
  const Extents e(o, device);
  rows_at = e.tokens;
  segments_at = 2 * e.tokens;
  owners_at = segments_at + kSegmentInts * e.segments;
}

int64_t Workspace::bytes(const XlstmConfig& c, const StateOptions& o, Dtype activation, Device device) {
  int64_t sum = 0;
  for (const Buffer& b : buffers(c, o, activation, device)) sum += b.shape.numel() * size_of(b.dtype);
  return sum;
}

int64_t XlstmStates::block_floats(const XlstmConfig& c) {
  return c.num_layers * c.num_heads * mlstm_slot_floats(c.head_qk(), c.head_v());
}

int64_t XlstmStates::num_blocks(const XlstmConfig& c, const StateOptions& o) {
  TRIVIUM_CHECK(o.num_slots >= 1 && o.max_length >= 1 && o.max_step_tokens >= 1, "states: ", o.num_slots,
                " slots of ", o.max_length, " positions in steps of ", o.max_step_tokens,
                " tokens, expected at least 1 of each");
  if (o.budget_bytes <= 0) return o.num_slots;
  return std::min<int64_t>(o.num_slots,
                           o.budget_bytes / (block_floats(c) * static_cast<int64_t>(sizeof(float))));
}

XlstmStates::XlstmStates(const XlstmConfig& c, const StateOptions& options, Dtype activation, Device device)
    : stream(is_gpu(device.kind) ? std::make_unique<Stream>(device) : nullptr),
      work(c, options, activation, device),
      options_(options),
      layer_floats_(c.num_heads * mlstm_slot_floats(c.head_qk(), c.head_v())),
      blocks_(Tensor::empty({num_blocks(c, options), block_floats(c)}, Dtype::f32, device)),
      slots_(static_cast<size_t>(options.num_slots)) {
  bytes_ = blocks_.nbytes() + Workspace::bytes(c, options, activation, device);
  for (int64_t b = blocks_.dim(0); b-- > 0;) free_.push_back(static_cast<int32_t>(b));
}

XlstmStates::Slot& XlstmStates::slot_at(int slot) {
  TRIVIUM_CHECK(slot >= 0 && slot < options_.num_slots, "states: slot ", slot, " of ", options_.num_slots);
  return slots_[static_cast<size_t>(slot)];
}

bool XlstmStates::reserve(int slot, int64_t length) {
  Slot& s = slot_at(slot);
  if (length > options_.max_length) return false;
  if (s.block < 0) {
    if (free_.empty()) return false;
    s.block = free_.back();
    free_.pop_back();
  }
  s.reserved = std::max(s.reserved, length);
  return true;
}

void XlstmStates::release(int slot) {
  Slot& s = slot_at(slot);
  if (s.block >= 0) free_.push_back(s.block);
  s = {};
}

bool XlstmStates::copy(int from, int to) {
  const Slot& source = slot_at(from);
  TRIVIUM_CHECK(from != to, "states: slot ", from, " copied onto itself");
  release(to);
  if (source.block < 0) return true;
  if (!reserve(to, source.reserved)) return false;
  Slot& target = slot_at(to);
  target.processed = source.processed;
  const int64_t floats = blocks_.dim(1);
  float* all = blocks_.data_as<float>();
  const Device device = blocks_.device();
  const Status status =
      runtime(device).copy(device.index, stream ? stream->handle() : nullptr, all + target.block * floats,
                           all + source.block * floats, floats * static_cast<int64_t>(sizeof(float)));
  if (status != Status::ok) throw_status(device.kind, status);
  if (stream) stream->synchronize();
  return true;
}

void XlstmStates::touch() {
  const Device device = blocks_.device();
  const Status status = runtime(device).fill(device.index, nullptr, blocks_.data(), 0, blocks_.nbytes());
  if (status != Status::ok) throw_status(device.kind, status);
}

}  // namespace trivium::xlstm
