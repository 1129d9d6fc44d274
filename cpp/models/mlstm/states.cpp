#include <algorithm>
#include <cstring>

#include "models/mlstm/model.h"

namespace trivium::xlstm {

Workspace::Workspace(const XlstmConfig& c, int64_t T, Dtype activation)
    : ids(Tensor::empty({T}, Dtype::i32)),
      x(Tensor::empty({T, c.hidden_size}, Dtype::f32)),
      normed(Tensor::empty({T, c.hidden_size}, activation)),
      qkvo(Tensor::empty({T, 2 * c.qk_dim + 2 * c.v_dim}, Dtype::f32)),
      gates(Tensor::empty({T, 2 * c.num_heads}, Dtype::f32)),
      h(Tensor::empty({T, c.v_dim}, Dtype::f32)),
      gated(Tensor::empty({T, c.v_dim}, activation)),
      up(Tensor::empty({T, 2 * c.intermediate_size}, Dtype::f32)),
      act(Tensor::empty({T, c.intermediate_size}, activation)) {}

int64_t Workspace::bytes() const {
  int64_t sum = 0;
  for (const Tensor* t : {&ids, &x, &normed, &qkvo, &gates, &h, &gated, &up, &act, &logits})
    sum += t->nbytes();
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

XlstmStates::XlstmStates(const XlstmConfig& c, const StateOptions& options, Dtype activation)
    : work(c, options.max_step_tokens, activation),
      options_(options),
      layer_floats_(c.num_heads * mlstm_slot_floats(c.head_qk(), c.head_v())),
      blocks_(Tensor::empty({num_blocks(c, options), block_floats(c)}, Dtype::f32)),
      slots_(static_cast<size_t>(options.num_slots)) {
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
  std::memcpy(blocks_.data_as<float>() + target.block * floats,
              blocks_.data_as<float>() + source.block * floats, static_cast<size_t>(floats) * sizeof(float));
  return true;
}

int64_t XlstmStates::bytes() const { return blocks_.nbytes() + work.bytes(); }

void XlstmStates::touch() { std::memset(blocks_.data(), 0, static_cast<size_t>(blocks_.nbytes())); }

}  // namespace trivium::xlstm
