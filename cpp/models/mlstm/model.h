// The xLSTM language model (Beck et al. 2024, 2025): blocks of an mLSTM layer and a gated feed-forward
// network.
//
//   x = embedding[ids]
//   y = rms_norm(x);  H = mLSTM(Wq y, Wk y, Wv y, cap(Wi y + bi), cap(Wf y + bf))
//   x += Wout (sigmoid(Wo y) * head_norm(H));  y = rms_norm(x);  x += Wdown (silu(Wgate y) * (Wup y))
//   logits = cap(Wlm rms_norm(x))
#pragma once

#include <memory>
#include <vector>

#include "models/mlstm/weights.h"
#include "models/step.h"
#include "ops/mlstm_args.h"

namespace trivium::xlstm {

// Memory of one forward(), allocated once. T = max_step_tokens, on a GPU at least the largest padded batch; N
// segments, F further chunks of them.
struct Workspace {
  Workspace(const XlstmConfig& config, const StateOptions& options, Dtype activation, Device device);
  static int64_t bytes(const XlstmConfig& config, const StateOptions& options, Dtype activation,
                       Device device);

  // i32, host: ids [T], rows that need logits [T], segments [N, 5] (MlstmSegment), owners [F]
  Tensor staging;
  Tensor inputs;        // the same where kernels read it
  Tensor x;             // f32 [T, D], the residual stream
  Tensor normed;        // [T, D] activation dtype
  Tensor qkvo;          // f32 [T, 2 Q + 2 W]: queries, keys, values, output gates
  Tensor gates;         // f32 [T, 2 NH]: input gates, forget gates
  Tensor chunk_states;  // f32 [F, mlstm_chunk_state_floats()]; GPU only
  Tensor h;             // f32 [T, W]
  Tensor gated;         // [T, W] activation dtype
  Tensor up;            // f32 [T, 2 U]
  Tensor act;           // [T, U] activation dtype
  Tensor chosen;        // f32 [T, D], rows of x that need logits
  Tensor logits;        // f32 [num_slots, V], on a GPU the padded batch
  Tensor all_logits;    // f32 [rows asked for, V] when they are more, made then
  // Where the parts of staging and inputs begin.
  int64_t rows_at, segments_at, owners_at;
};

// A sequence's state has one size whatever its length. A slot holds a block of memory from reserve() to
// release(); with a budget there are fewer blocks than slots.
class XlstmStates : public SequenceStates {
 public:
  XlstmStates(const XlstmConfig& config, const StateOptions& options, Dtype activation, Device device);
  static int64_t block_floats(const XlstmConfig& config);  // of one sequence, all layers
  static int64_t num_blocks(const XlstmConfig& config, const StateOptions& options);

  bool reserve(int slot, int64_t length) override;
  void release(int slot) override;
  bool copy(int from, int to) override;
  int64_t bytes() const override { return bytes_; }
  int num_slots() const override { return options_.num_slots; }
  bool can_ever_hold(int64_t length) const override {
    return length <= options_.max_length && blocks_.dim(0) > 0;
  }
  void touch() override;

  const StateOptions& options() const { return options_; }
  int64_t reserved(int slot) const { return slots_[static_cast<size_t>(slot)].reserved; }
  int64_t& processed(int slot) {
    return slots_[static_cast<size_t>(slot)].processed;
  }  // tokens the state has seen
  int32_t block(int slot) const { return slots_[static_cast<size_t>(slot)].block; }
  float* layer(int64_t index) const { return blocks_.data_as<float>() + index * layer_floats_; }
  int64_t block_stride() const { return blocks_.dim(1); }
  std::unique_ptr<Stream> stream;  // null on the CPU
  Workspace work;
  DecodeGraphs graphs;

 private:
  struct Slot {
    int32_t block = -1;
    int64_t reserved = 0, processed = 0;
  };
  Slot& slot_at(int slot);

  StateOptions options_;
  int64_t layer_floats_, bytes_;
  Tensor blocks_;  // f32 [blocks, layers * NH * mlstm_slot_floats]
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;
};

class XlstmModel : public Model {
 public:
  XlstmModel(XlstmConfig config, XlstmWeights weights, ModelInfo info,
             std::shared_ptr<const io::Tokenizer> tokenizer);
  const ModelInfo& info() const override { return info_; }
  Dtype default_kv_dtype() const override { return Dtype::f32; }
  StateKind state_kind(Dtype /*kv_dtype*/) const override { return {"state", Dtype::f32}; }
  int64_t state_bytes(const StateOptions& options) const override;
  std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const override;
  Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override;
  void warm_up(const CancelToken* cancel) override;

 private:
  struct Step;
  void pack(Step& step) const;
  void mlstm_layer(Step& step, int64_t layer) const;
  void ffn_layer(Step& step, int64_t layer) const;
  Tensor logits(Step& step) const;
  Tensor enqueue(Step& step) const;

  XlstmConfig config_;
  XlstmWeights weights_;
  ModelInfo info_;
  Dtype activation_;  // of matmul inputs: f32 or bf16
};

// Factory for models/registry.cpp. `config_text` is the folder's config.json.
std::shared_ptr<Model> load_xlstm(const std::string& folder, const std::string& config_text,
                                  const LoadOptions& options);

}  // namespace trivium::xlstm
