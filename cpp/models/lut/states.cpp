#include <algorithm>

#include "core/registry.h"
#include "models/lut/model.h"

namespace trivium::lut {

namespace {

// On a GPU the largest step of one token a slot, padding included.
int64_t largest_batch(const StateOptions& o, Device device) {
  return is_gpu(device.kind) ? padded_batch(o.num_slots) : o.num_slots;
}

int64_t largest_step(const StateOptions& o, Device device) {
  return std::max<int64_t>(o.max_step_tokens, is_gpu(device.kind) ? largest_batch(o, device) : 1);
}

Shape cache_shape(const LutConfig& c, const StateOptions& o, Device device) {
  // All rows of a step enter the ring before the first of them is read.
  return {c.num_layers, o.num_slots + (is_gpu(device.kind) ? 1 : 0),
          c.context_size - 1 + largest_step(o, device), c.num_heads * c.num_tables};
}

struct Buffer {
  Tensor StepMemory::*tensor;
  Shape shape;
  Dtype dtype;
};

std::vector<Buffer> buffers(const LutConfig& c, const StateOptions& o, Device device) {
  const int64_t T = largest_step(o, device);
  using M = StepMemory;
  return {{&M::inputs, {4, T}, Dtype::i32},
          {&M::z, {T, c.embedding_dim}, Dtype::f32},
          {&M::chosen, {T, c.embedding_dim}, Dtype::f32},
          {&M::index, {T, c.num_heads * c.num_tables}, Dtype::i32},
          {&M::logits, {largest_batch(o, device), c.vocab_size}, Dtype::f32}};
}

const StateOptions& checked(const StateOptions& options) {
  TRIVIUM_CHECK(options.num_slots >= 1 && options.max_length >= 1 && options.max_step_tokens >= 1,
                "states: ", options.num_slots, " slots of ", options.max_length, " positions in steps of ",
                options.max_step_tokens, " tokens, expected at least 1 of each");
  return options;
}

}  // namespace

StepMemory::StepMemory(const LutConfig& c, const StateOptions& o, Device device) {
  for (const Buffer& b : buffers(c, o, device)) this->*b.tensor = Tensor::empty(b.shape, b.dtype, device);
  staging = is_gpu(device.kind) ? Tensor::pinned(inputs.shape(), Dtype::i32, device) : inputs;
}

int64_t StepMemory::bytes(const LutConfig& c, const StateOptions& o, Device device) {
  int64_t sum = 0;
  for (const Buffer& b : buffers(c, o, device)) sum += b.shape.numel() * size_of(b.dtype);
  return sum;
}

LutStates::LutStates(const LutConfig& c, const StateOptions& options, Device device)
    : stream(is_gpu(device.kind) ? std::make_unique<Stream>(device) : nullptr),
      cache(Tensor::zeros(cache_shape(c, checked(options), device), Dtype::i32, device)),
      work(c, options, device),
      options_(options),
      bytes_(bytes_for(c, options, device)),
      length_(static_cast<size_t>(options.num_slots), 0) {}

int64_t LutStates::bytes_for(const LutConfig& c, const StateOptions& o, Device device) {
  return cache_shape(c, o, device).numel() * size_of(Dtype::i32) + StepMemory::bytes(c, o, device);
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
  const int64_t slots = cache.dim(1), slot_values = ring() * cache.dim(3);
  int32_t* values = cache.data_as<int32_t>();
  const Device device = cache.device();
  for (int64_t l = 0; l < cache.dim(0); ++l) {
    const Status status =
        runtime(device).copy(device.index, handle(), values + (l * slots + to) * slot_values,
                             values + (l * slots + from) * slot_values, slot_values * 4);
    if (status != Status::ok) throw_status(device.kind, status);
  }
  if (stream) stream->synchronize();
  return true;
}

void LutStates::touch() {}  // the cache was zeroed when it was made

}  // namespace trivium::lut
