#include <algorithm>

#include "models/lut/model.h"

namespace trivium::lut {

namespace {

int64_t ring_of(const LutConfig& c, const StateOptions& o) {
  // All rows of a step enter the ring before the first of them is read.
  return c.context_size - 1 + std::max<int64_t>(o.max_step_tokens, 1);
}

void copy_bytes(Device device, void* to, const void* from, int64_t bytes) {
  if (const Status s = runtime(device).copy(device.index, nullptr, to, from, bytes); s != Status::ok)
    throw_status(device.kind, s);
}

}  // namespace

LutStates::LutStates(const LutConfig& c, const StateOptions& options, Device device)
    : options_(options), ring_(ring_of(c, options)), length_(static_cast<size_t>(options.num_slots), 0) {
  TRIVIUM_CHECK(options.num_slots >= 1 && options.max_length >= 1 && options.max_step_tokens >= 1,
                "states: ", options.num_slots, " slots of ", options.max_length, " positions in steps of ",
                options.max_step_tokens, " tokens, expected at least 1 of each");
  const int64_t T = options.max_step_tokens, heads = c.num_heads * c.num_tables;
  cache = Tensor::zeros({c.num_layers, options.num_slots, ring_, heads}, Dtype::i32, device);
  ids = Tensor::empty({T}, Dtype::i32, device);
  slots = Tensor::empty({T}, Dtype::i32, device);
  positions = Tensor::empty({T}, Dtype::i32, device);
  z = Tensor::empty({T, c.embedding_dim}, Dtype::f32, device);
  gathered = Tensor::empty({T, c.embedding_dim}, Dtype::f32, device);
  index = Tensor::empty({T, heads}, Dtype::i32, device);
}

int64_t LutStates::bytes_for(const LutConfig& c, const StateOptions& o) {
  const int64_t heads = c.num_heads * c.num_tables;
  return 4 * (c.num_layers * o.num_slots * ring_of(c, o) * heads +
              o.max_step_tokens * (3 + 2 * c.embedding_dim + heads) + o.num_slots * c.vocab_size);
}

bool LutStates::reserve(int slot, int64_t length) {
  TRIVIUM_CHECK(slot >= 0 && slot < options_.num_slots, "states: slot ", slot, " of ", options_.num_slots);
  if (length > options_.max_length) return false;
  auto& held = length_[static_cast<size_t>(slot)];
  held = std::max(held, length);
  return true;
}

void LutStates::release(int slot) {
  TRIVIUM_CHECK(slot >= 0 && slot < options_.num_slots, "states: slot ", slot, " of ", options_.num_slots);
  length_[static_cast<size_t>(slot)] = 0;
}

bool LutStates::copy(int from, int to) {
  TRIVIUM_CHECK(from != to, "states: slot ", from, " copied onto itself");
  release(to);
  reserve(to, reserved(from));
  const int64_t slot_values = ring_ * cache.dim(3);
  int32_t* values = cache.data_as<int32_t>();
  for (int64_t l = 0; l < cache.dim(0); ++l)
    copy_bytes(cache.device(), values + (l * options_.num_slots + to) * slot_values,
               values + (l * options_.num_slots + from) * slot_values, slot_values * 4);
  return true;
}

int64_t LutStates::bytes() const {
  int64_t sum = 0;
  for (const Tensor* t : {&cache, &ids, &slots, &positions, &z, &gathered, &index, &logits})
    sum += t->nbytes();
  return sum;
}

void LutStates::touch() {}  // the cache was zeroed when it was made

}  // namespace trivium::lut
