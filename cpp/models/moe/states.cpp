#include "models/moe/states.h"

#include <algorithm>
#include <cstring>

namespace trivium::moe {
namespace {

int64_t blocks_for(int64_t length) { return (length + kPageSize - 1) / kPageSize; }

int64_t page_bytes(const MoeConfig& c, int64_t layers,
                   Dtype dtype) {  // K and V of one page in all layers of a pool
  return 2 * layers * c.kv_dim() * kPageSize * size_of(dtype);
}

}  // namespace

PagePool::PagePool(const MoeConfig& c, int64_t num_layers, int64_t num_pages, int num_slots,
                   int64_t blocks_per_slot, Dtype dtype)
    : num_layers_(num_layers),
      num_pages_(num_pages),
      blocks_per_slot_(std::max<int64_t>(blocks_per_slot, 1)),
      page_elements_(c.kv_dim() * kPageSize),
      held_(static_cast<size_t>(num_slots)) {
  const Shape shape{num_layers, num_pages, c.num_kv_heads, kPageSize, c.head_dim};
  k_ = Tensor::empty(shape, dtype);
  v_ = Tensor::empty(shape, dtype);
  block_table_ = Tensor::zeros({num_slots, blocks_per_slot_}, Dtype::i32);
  for (int64_t p = num_pages; p-- > 0;) free_.push_back(static_cast<int32_t>(p));
}

int64_t PagePool::layer_bytes() const { return num_pages_ * page_elements_ * size_of(k_.dtype()); }

bool PagePool::grow(int slot, int64_t blocks) {
  auto& held = held_[static_cast<size_t>(slot)];
  const auto wanted = static_cast<size_t>(num_layers_ == 0 ? 0 : std::min(blocks, blocks_per_slot_));
  if (wanted <= held.size()) return true;
  if (wanted - held.size() > free_.size()) return false;
  int32_t* table = block_table_.data_as<int32_t>() + slot * blocks_per_slot_;
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

void PagePool::copy_slot(int from, int to) {
  const auto& source = held_[static_cast<size_t>(from)];
  const auto& target = held_[static_cast<size_t>(to)];
  const int64_t bytes = page_elements_ * size_of(k_.dtype());
  for (const Tensor* t : {&k_, &v_})
    for (int64_t l = 0; l < num_layers_; ++l) {
      char* layer = static_cast<char*>(t->data()) + l * layer_bytes();
      for (size_t b = 0; b < target.size(); ++b)
        std::memcpy(layer + target[b] * bytes, layer + source[b] * bytes, static_cast<size_t>(bytes));
    }
}

PagedKv PagePool::view(int64_t layer) const {
  return {.k = static_cast<char*>(k_.data()) + layer * layer_bytes(),
          .v = static_cast<char*>(v_.data()) + layer * layer_bytes(),
          .block_table = block_table_.data_as<int32_t>(),
          .blocks_per_slot = static_cast<int32_t>(blocks_per_slot_),
          .page_size = static_cast<int32_t>(kPageSize),
          .dtype = k_.dtype()};
}

void PagePool::touch() {
  std::memset(k_.data(), 0, static_cast<size_t>(k_.nbytes()));
  std::memset(v_.data(), 0, static_cast<size_t>(v_.nbytes()));
}

Workspace::Workspace(const MoeConfig& c, int64_t T, Dtype activation)
    : ids(Tensor::empty({T}, Dtype::i32)),
      slots(Tensor::empty({T}, Dtype::i32)),
      positions(Tensor::empty({T}, Dtype::i32)),
      inv_freq(Tensor::empty({c.head_dim / 2}, Dtype::f64)),
      rope(Tensor::empty({T, c.head_dim / 2, 2}, Dtype::f32)),
      x(Tensor::empty({T, c.hidden_size}, Dtype::f32)),
      normed(Tensor::empty({T, c.hidden_size}, activation)),
      qkv(Tensor::empty({T, c.q_dim() + 2 * c.kv_dim()}, Dtype::f32)),
      attended(Tensor::empty({T, c.q_dim()}, activation)),
      router_logits(Tensor::empty({T, c.num_experts}, Dtype::f32)),
      experts(Tensor::empty({T, c.top_k}, Dtype::i32)),
      expert_weights(Tensor::empty({T, c.top_k}, Dtype::f32)),
      offsets(Tensor::empty({c.num_experts + 1}, Dtype::i32)),
      tokens_of_row(Tensor::empty({T * c.top_k}, Dtype::i32)),
      row_of_choice(Tensor::empty({T * c.top_k}, Dtype::i32)),
      act(Tensor::empty({T * c.top_k, c.intermediate_size}, activation)),
      expert_out(Tensor::empty({T * c.top_k, c.hidden_size}, Dtype::f32)) {}

int64_t Workspace::bytes() const {
  int64_t sum = 0;
  for (const Tensor* t :
       {&ids, &slots, &positions, &inv_freq, &rope, &x, &normed, &qkv, &attended, &router_logits, &experts,
        &expert_weights, &offsets, &tokens_of_row, &row_of_choice, &act, &expert_out, &logits})
    sum += t->nbytes();
  return sum;
}

MoeStates::Plan MoeStates::plan(const MoeConfig& c, const StateOptions& o) {
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
  p.bytes = p.full_pages * full_page + p.ring_pages * ring_page;
  return p;
}

MoeStates::MoeStates(const MoeConfig& c, const StateOptions& options, Dtype activation)
    : work(c, options.max_step_tokens, activation),
      config_(c),
      options_(options),
      plan_(plan(c, options)),
      full_(c, plan_.full_layers, plan_.full_pages, options.num_slots, plan_.full_blocks, options.kv_dtype),
      ring_(c, plan_.sliding_layers, plan_.ring_pages, options.num_slots, plan_.ring_blocks,
            options.kv_dtype),
      length_(static_cast<size_t>(options.num_slots), 0) {
  int64_t full = 0, sliding = 0;
  for (const bool s : c.sliding) index_in_pool_.push_back(s ? sliding++ : full++);
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
  full_.copy_slot(from, to);
  ring_.copy_slot(from, to);
  return true;
}

int64_t MoeStates::bytes() const { return full_.bytes() + ring_.bytes() + work.bytes(); }

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
