// The KV cache of many sequences, in pages of 16 positions, and the step's work memory.
#pragma once

#include <memory>
#include <vector>

#include "core/stream.h"
#include "models/model.h"
#include "models/moe/config.h"
#include "models/step.h"
#include "ops/args.h"

namespace trivium::moe {

inline constexpr int64_t kPageSize =
    16;  // positions; a decode step then touches whole cache lines of one head

// Pages of one kind of layer: all full layers share page numbers, all sliding layers do. Full layers keep
// every position; sliding ones a ring of `window - 1 + max_step_tokens` positions, enough for the past a
// window sees and a whole step written before it is read.
// On a GPU there is one page and one row of the table more, for the tokens that pad a step.
class PagePool {
 public:
  PagePool(const MoeConfig& config, int64_t num_layers, int64_t num_pages, int num_slots,
           int64_t blocks_per_slot, Dtype dtype, Device device);
  // Grows the slot to `blocks` pages (its ring at most); false, changing nothing, when too few are free.
  bool grow(int slot, int64_t blocks);
  void release(int slot);
  void copy_slot(int from, int to, Stream* stream);  // both hold equally many pages
  void upload_table(Stream& stream);                 // what changed since the last call; GPU only
  PagedKv view(int64_t layer) const;                 // layer counts within the pool
  int64_t blocks_per_slot() const { return blocks_per_slot_; }
  int64_t num_pages() const { return num_pages_; }
  int64_t bytes() const { return k_.nbytes() + v_.nbytes(); }
  void touch();

 private:
  int64_t layer_bytes() const;
  Tensor k_, v_;         // [num_layers, num_pages, num_kv_heads, kPageSize, head_dim] dtype
  Tensor block_table_;   // i32 [num_slots, blocks_per_slot], on the host
  Tensor device_table_;  // what kernels read: block_table_ itself on the CPU
  bool changed_ = true;
  int64_t num_layers_, num_pages_, blocks_per_slot_, page_elements_;
  std::vector<int32_t> free_;               // page numbers, taken from the back
  std::vector<std::vector<int32_t>> held_;  // by slot
};

// Memory of one forward(), allocated once. T = max_step_tokens, on a GPU at least the largest padded batch.
struct Workspace {
  Workspace(const MoeConfig& config, const StateOptions& options, Dtype activation, Device device);
  static int64_t bytes(const MoeConfig& config, const StateOptions& options, Dtype activation, Device device);

  Tensor staging;                       // i32 [4, T], host: ids, slots, positions, rows that need logits
  Tensor inputs;                        // the same where kernels read it
  Tensor inv_freq;                      // f64 [D / 2]
  Tensor rope;                          // f32 [T, D / 2, 2]
  Tensor x;                             // f32 [T, H], the residual stream
  Tensor projected;                     // f32 [T, H], what attention adds to x
  Tensor normed;                        // [T, H] activation dtype
  Tensor qkv;                           // f32 [T, (Nq + 2 Nk) D]
  Tensor attended;                      // [T, Nq D] activation dtype
  Tensor router_logits;                 // f32 [T, E]
  Tensor experts, expert_weights;       // i32, f32 [T, K]
  Tensor offsets;                       // i32 [E + 1]
  Tensor tokens_of_row, row_of_choice;  // i32 [T K]
  Tensor act;                           // [T K, I] activation dtype
  Tensor expert_out;                    // f32 [T K, H]
  Tensor chosen;                        // f32 [T, H], rows of x that need logits
  Tensor logits;                        // f32 [num_slots, V], on a GPU the padded batch
  Tensor all_logits;                    // f32 [rows asked for, V] when they are more, made then
  Tensor attention;                     // f32, AttentionArgs::workspace of decode steps; GPU only
};

class MoeStates : public SequenceStates {
 public:
  MoeStates(const MoeConfig& config, const StateOptions& options, Dtype activation, Device device = {});
  bool reserve(int slot, int64_t length) override;
  void release(int slot) override;
  bool copy(int from, int to) override;
  int64_t bytes() const override;
  int num_slots() const override { return options_.num_slots; }
  bool can_ever_hold(int64_t length) const override;
  void touch() override;

  PagedKv kv(int64_t layer) const;
  int64_t reserved(int slot) const { return length_[static_cast<size_t>(slot)]; }
  const StateOptions& options() const { return options_; }
  void upload_tables();  // GPU only
  Device device;
  std::unique_ptr<Stream> stream;  // null on the CPU
  Workspace work;
  DecodeGraphs graphs;

  // Page numbers for `options`: what state_bytes reports and the constructor allocates.
  struct Plan {
    int64_t full_layers, sliding_layers, full_blocks, ring_blocks, full_pages, ring_pages, bytes;
  };
  static Plan plan(const MoeConfig& config, const StateOptions& options, Device device = {});

 private:
  void check_slot(int slot) const;

  const MoeConfig config_;  // a copy: states may outlive their model
  StateOptions options_;
  Plan plan_;
  PagePool full_, ring_;
  std::vector<int64_t> length_;         // by slot: positions reserved
  std::vector<int64_t> index_in_pool_;  // by layer
  int64_t bytes_ = 0;
};

}  // namespace trivium::moe
