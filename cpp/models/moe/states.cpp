#include "models/moe/states.h"

#include <algorithm>
#include <cstring>

#include "core/registry.h"

namespace trivium::moe {
namespace {

int64_t blocks_for(int64_t length) { return (length + kPageSize - 1) / kPageSize; }

int64_t page_bytes(const MoeConfig& c, int64_t layers,
                   Dtype dtype) {  // K and V of one page in all layers of a pool
  return 2 * layers * c.kv_dim() * kPageSize * size_of(dtype);
}

// Pages and table rows that only the padding of a decode step uses.
int64_t spare(Device device) { return is_gpu(device.kind) ? 1 : 0; }

void check(Device device, Status status) {
  if (status != Status::ok) throw_status(device.kind, status);
}

}  // namespace

PagePool::PagePool(const MoeConfig& c, int64_t num_layers, int64_t num_pages, int num_slots,
                   int64_t blocks_per_slot, Dtype dtype, Device device)
    : num_layers_(num_layers),
      num_pages_(num_pages),
      blocks_per_slot_(std::max<int64_t>(blocks_per_slot, 1)),
      page_elements_(c.kv_dim() * kPageSize),
      held_(static_cast<size_t>(num_slots)) {
  const Shape shape{num_layers, num_pages + spare(device), c.num_kv_heads, kPageSize, c.head_dim};
  k_ = Tensor::empty(shape, dtype, device);
  v_ = Tensor::empty(shape, dtype, device);
  block_table_ = Tensor::pinned({num_slots + spare(device), blocks_per_slot_}, Dtype::i32, device);
  std::fill_n(block_table_.data_as<int32_t>(), block_table_.numel(),
              static_cast<int32_t>(is_gpu(device.kind) ? num_pages : 0));
  device_table_ =
      is_gpu(device.kind) ? Tensor::empty(block_table_.shape(), Dtype::i32, device) : block_table_;
  for (int64_t p = num_pages; p-- > 0;) free_.push_back(static_cast<int32_t>(p));
}

int64_t PagePool::layer_bytes() const { return k_.dim(1) * page_elements_ * size_of(k_.dtype()); }

bool PagePool::grow(int slot, int64_t blocks) {
  auto& held = held_[static_cast<size_t>(slot)];
  const auto wanted = static_cast<size_t>(num_layers_ == 0 ? 0 : std::min(blocks, blocks_per_slot_));
  if (wanted <= held.size()) return true;
  if (wanted - held.size() > free_.size()) return false;
  int32_t* table = block_table_.data_as<int32_t>() + slot * blocks_per_slot_;
  changed_ = true;
  while (held.size() < wanted) {
    table[held.size()] = free_.back();
    held.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void PagePool::release(int slot) {
  auto& held = held_[static_cast<size_t>(slot)];
  free_.insert(free_.end(), held.rbegin(), held.rend());
  held.clear();
}

void PagePool::copy_slot(int from, int to, Stream* stream) {
  const auto& source = held_[static_cast<size_t>(from)];
  const auto& target = held_[static_cast<size_t>(to)];
  const int64_t bytes = page_elements_ * size_of(k_.dtype());
  const Device device = k_.device();
  for (const Tensor* t : {&k_, &v_})
    for (int64_t l = 0; l < num_layers_; ++l) {
      char* layer = static_cast<char*>(t->data()) + l * layer_bytes();
      for (size_t b = 0; b < target.size(); ++b)
        check(device, runtime(device).copy(device.index, stream ? stream->handle() : nullptr,
                                           layer + target[b] * bytes, layer + source[b] * bytes, bytes));
    }
}

void PagePool::upload_table(Stream& stream) {
  if (!changed_) return;
  const Device device = k_.device();
  check(device, runtime(device).copy(device.index, stream.handle(), device_table_.data(), block_table_.data(),
                                     block_table_.nbytes()));
  changed_ = false;
}

PagedKv PagePool::view(int64_t layer) const {
  return {.k = static_cast<char*>(k_.data()) + layer * layer_bytes(),
          .v = static_cast<char*>(v_.data()) + layer * layer_bytes(),
          .block_table = device_table_.data_as<int32_t>(),
          .blocks_per_slot = static_cast<int32_t>(blocks_per_slot_),
          .page_size = static_cast<int32_t>(kPageSize),
          .dtype = k_.dtype()};
}

void PagePool::touch() {
  const Device device = k_.device();
  for (const Tensor* t : {&k_, &v_})
    check(device, runtime(device).fill(device.index, nullptr, t->data(), 0, t->nbytes()));
}

namespace {

struct Buffer {
  Tensor Workspace::*tensor;
  Shape shape;
  Dtype dtype;
};

// Decode steps up to this size cut a query's keys into parallel splits; larger ones fill the device without.
constexpr int64_t kMostSplitTokens = 256;

std::vector<Buffer> buffers(const MoeConfig& c, const StateOptions& o, Dtype activation, Device device) {
  const bool gpu = is_gpu(device.kind);
  const int64_t batch = gpu ? padded_batch(o.num_slots) : o.num_slots;
  const int64_t T = std::max<int64_t>(o.max_step_tokens, gpu ? batch : 1), K = c.top_k;
  using W = Workspace;
  std::vector<Buffer> list{{&W::inputs, {4, T}, Dtype::i32},
                           {&W::inv_freq, {c.head_dim / 2}, Dtype::f64},
                           {&W::rope, {T, c.head_dim / 2, 2}, Dtype::f32},
                           {&W::x, {T, c.hidden_size}, Dtype::f32},
                           {&W::projected, {T, c.hidden_size}, Dtype::f32},
                           {&W::normed, {T, c.hidden_size}, activation},
                           {&W::qkv, {T, c.q_dim() + 2 * c.kv_dim()}, Dtype::f32},
                           {&W::attended, {T, c.q_dim()}, activation},
                           {&W::router_logits, {T, c.num_experts}, Dtype::f32},
                           {&W::experts, {T, K}, Dtype::i32},
                           {&W::expert_weights, {T, K}, Dtype::f32},
                           {&W::offsets, {c.num_experts + 1}, Dtype::i32},
                           {&W::tokens_of_row, {T * K}, Dtype::i32},
                           {&W::row_of_choice, {T * K}, Dtype::i32},
                           {&W::act, {T * K, c.intermediate_size}, activation},
                           {&W::expert_out, {T * K, c.hidden_size}, Dtype::f32},
                           {&W::chosen, {T, c.hidden_size}, Dtype::f32},
                           {&W::logits, {batch, c.vocab_size}, Dtype::f32}};
  if (gpu)
    list.push_back({&W::attention,
                    {attention_workspace(std::min(batch, kMostSplitTokens), c.num_heads, c.head_dim)},
                    Dtype::f32});
  return list;
}

}  // namespace

Workspace::Workspace(const MoeConfig& c, const StateOptions& options, Dtype activation, Device device) {
  for (const Buffer& b : buffers(c, options, activation, device))
    this->*b.tensor = Tensor::empty(b.shape, b.dtype, device);
  staging = is_gpu(device.kind) ? Tensor::pinned(inputs.shape(), Dtype::i32, device) : inputs;
}

int64_t Workspace::bytes(const MoeConfig& c, const StateOptions& options, Dtype activation, Device device) {
  int64_t sum = 0;
  for (const Buffer& b : buffers(c, options, activation, device)) sum += b.shape.numel() * size_of(b.dtype);
  return sum;
}

MoeStates::Plan MoeStates::plan(const MoeConfig& c, const StateOptions& o, Device device) {
  TRIVIUM_CHECK(o.num_slots >= 1 && o.max_length >= 1 && o.max_step_tokens >= 1, "states: ", o.num_slots,
                " slots of ", o.max_length, " positions in steps of ", o.max_step_tokens,
                " tokens, expected at least 1 of each");
  TRIVIUM_CHECK(o.kv_dtype == Dtype::f32 || o.kv_dtype == Dtype::bf16, "states: kv_dtype is ", o.kv_dtype,
                ", expected float32 or bfloat16");
  Plan p{};
  p.sliding_layers = std::count(c.sliding.begin(), c.sliding.end(), true);
  p.full_layers = c.num_layers - p.sliding_layers;
  p.full_blocks = blocks_for(o.max_length);
  p.ring_blocks =
      p.sliding_layers ? std::min(p.full_blocks, blocks_for(c.sliding_window - 1 + o.max_step_tokens)) : 0;
  const int64_t full_page = page_bytes(c, p.full_layers, o.kv_dtype),
                ring_page = page_bytes(c, p.sliding_layers, o.kv_dtype);
  p.full_pages = p.full_layers ? o.num_slots * p.full_blocks : 0;
  p.ring_pages = o.num_slots * p.ring_blocks;
  const int64_t wanted = p.full_pages * full_page + p.ring_pages * ring_page;
  if (o.budget_bytes > 0 && wanted > o.budget_bytes) {
    // Both pools shrink alike, so that neither starves the other.
    const double share = static_cast<double>(o.budget_bytes) / static_cast<double>(wanted);
    p.full_pages = static_cast<int64_t>(static_cast<double>(p.full_pages) * share);
    p.ring_pages = static_cast<int64_t>(static_cast<double>(p.ring_pages) * share);
  }
  p.bytes = (p.full_pages + spare(device)) * full_page + (p.ring_pages + spare(device)) * ring_page;
  return p;
}

MoeStates::MoeStates(const MoeConfig& c, const StateOptions& options, Dtype activation, Device on)
    : device(on),
      stream(is_gpu(on.kind) ? std::make_unique<Stream>(on) : nullptr),
      work(c, options, activation, on),
      config_(c),
      options_(options),
      plan_(plan(c, options, on)),
      full_(c, plan_.full_layers, plan_.full_pages, options.num_slots, plan_.full_blocks, options.kv_dtype,
            on),
      ring_(c, plan_.sliding_layers, plan_.ring_pages, options.num_slots, plan_.ring_blocks, options.kv_dtype,
            on),
      length_(static_cast<size_t>(options.num_slots), 0),
      bytes_(Workspace::bytes(c, options, activation, on) + full_.bytes() + ring_.bytes()) {
  int64_t full = 0, sliding = 0;
  for (const bool s : c.sliding) index_in_pool_.push_back(s ? sliding++ : full++);
}

void MoeStates::upload_tables() {
  full_.upload_table(*stream);
  ring_.upload_table(*stream);
}

bool MoeStates::reserve(int slot, int64_t length) {
  check_slot(slot);
  if (length > options_.max_length) return false;
  // Pages the first pool gained stay with the slot when the second has too few: release() gives them back.
  if (!full_.grow(slot, blocks_for(length)) || !ring_.grow(slot, blocks_for(length))) return false;
  length_[static_cast<size_t>(slot)] = std::max(length_[static_cast<size_t>(slot)], length);
  return true;
}

void MoeStates::check_slot(int slot) const {
  TRIVIUM_CHECK(slot >= 0 && slot < options_.num_slots, "states: slot ", slot, " of ", options_.num_slots);
}

void MoeStates::release(int slot) {
  check_slot(slot);
  full_.release(slot);
  ring_.release(slot);
  length_[static_cast<size_t>(slot)] = 0;
}

bool MoeStates::copy(int from, int to) {
  check_slot(from);
  TRIVIUM_CHECK(from != to, "states: slot ", from, " copied onto itself");
  release(to);
  if (!reserve(to, reserved(from))) {
    release(to);
    return false;
  }
  full_.copy_slot(from, to, stream.get());
  ring_.copy_slot(from, to, stream.get());
  if (stream) stream->synchronize();
  return true;
}

int64_t MoeStates::bytes() const { return bytes_; }

bool MoeStates::can_ever_hold(int64_t length) const {
  if (length > options_.max_length) return false;
  const int64_t blocks = blocks_for(length);
  return (plan_.full_layers == 0 || blocks <= full_.num_pages()) &&
         (plan_.sliding_layers == 0 || std::min(blocks, plan_.ring_blocks) <= ring_.num_pages());
}

void MoeStates::touch() {
  full_.touch();
  ring_.touch();
}

PagedKv MoeStates::kv(int64_t layer) const {
  const auto l = static_cast<size_t>(layer);
  return config_.sliding[l] ? ring_.view(index_in_pool_[l]) : full_.view(index_in_pool_[l]);
}

}  // namespace trivium::moe
