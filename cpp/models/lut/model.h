// The LUT language model: z = embedding[tokens]; per layer z += attention(z) and z += ffn(z); logits =
// unembedder(z) (Izhikevich, arXiv 2512.11843). A sequence's state is a ring of lookup indices for each
// layer.
#pragma once

#include <vector>

#include "models/lut/config.h"
#include "models/model.h"
#include "ops/lut.h"

namespace trivium::lut {

struct Block {
  std::unique_ptr<Layer> layer;
  Tensor weights;   // as layer->weight_shape()
  Tensor pe_index;  // i32 [S - 1, Nt], attention with embeddings of distance
  // With batch norm: its scale is in the weights, its constant is a table whose row 0 is always addressed.
  std::unique_ptr<Block> shift;
};

struct LutWeights {
  Tensor embedding;  // f32 [V, E]
  std::vector<Block> attention, ffn;
  Block unembedder;
  std::shared_ptr<const io::TensorArchive> archive;  // keeps the mapping
};

// Indices of the last positions of every slot, and the memory of one step.
class LutStates : public SequenceStates {
 public:
  LutStates(const LutConfig& config, const StateOptions& options, Device device);
  static int64_t bytes_for(const LutConfig& config, const StateOptions& options);
  bool reserve(int slot, int64_t length) override;
  void release(int slot) override;
  bool copy(int from, int to) override;
  int64_t bytes() const override;
  int num_slots() const override { return options_.num_slots; }
  bool can_ever_hold(int64_t length) const override { return length <= options_.max_length; }
  void touch() override;

  int64_t reserved(int slot) const { return length_[static_cast<size_t>(slot)]; }
  const StateOptions& options() const { return options_; }
  int64_t ring() const { return ring_; }
  Tensor cache;                  // i32 [layers, slots, ring, attention tables]
  Tensor ids, slots, positions;  // i32 [T], T = max_step_tokens
  Tensor z, gathered;            // f32 [T, E]
  Tensor index;                  // i32 [T, most tables of a layer]
  Tensor logits;                 // f32 [rows asked for, V], grown when more are asked for

 private:
  StateOptions options_;
  int64_t ring_;
  std::vector<int64_t> length_;  // by slot: positions reserved
};

class LutModel : public Model {
 public:
  LutModel(LutConfig config, LutWeights weights, ModelInfo info,
           std::shared_ptr<const io::Tokenizer> tokenizer);

  const ModelInfo& info() const override { return info_; }
  const LutConfig& config() const { return config_; }
  Dtype default_kv_dtype() const override { return Dtype::f32; }
  StateKind state_kind(Dtype /*kv_dtype*/) const override { return {"state", Dtype::i32}; }
  int64_t state_bytes(const StateOptions& options) const override;
  std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const override;
  Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override;
  void warm_up() override;

 private:
  struct Step;
  void detect(const Block& block, const Tensor& x, LutStates& states) const;
  void attend(Step& step, size_t layer) const;
  void look_up(const Block& block, const Tensor& x, LutStates& states, Tensor& y, bool accumulate) const;
  Tensor logits(Step& step) const;

  LutConfig config_;
  LutWeights weights_;
  ModelInfo info_;
};

// For models/registry.cpp.
std::shared_ptr<Model> load_folder(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options);

}  // namespace trivium::lut
