// The LUT language model: z = embedding[tokens]; per layer z += attention(z) and z += ffn(z); logits =
// unembedder(z) (Izhikevich, arXiv 2512.11843). A sequence's state is a ring of lookup indices for each
// layer.
#pragma once

#include <vector>

#include "models/lut/config.h"
#include "models/step.h"
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

// Memory of one forward(), allocated once. T = max_step_tokens, on a GPU at least the largest padded batch.
struct StepMemory {
  StepMemory(const LutConfig& config, const StateOptions& options, Device device);
  static int64_t bytes(const LutConfig& config, const StateOptions& options, Device device);

  Tensor staging;     // i32 [4, T], host: ids, slots, positions, rows that need logits
  Tensor inputs;      // the same where kernels read it
  Tensor z, chosen;   // f32 [T, E]: the residual stream, rows of it that need logits
  Tensor index;       // i32 [T, most tables of a layer]
  Tensor logits;      // f32 [num_slots, V], on a GPU the padded batch
  Tensor all_logits;  // f32 [rows asked for, V] when they are more, made then
};

// Indices of the last positions of every slot, on a GPU of one slot more, for the tokens that pad a step.
class LutStates : public SequenceStates {
 public:
  LutStates(const LutConfig& config, const StateOptions& options, Device device);
  static int64_t bytes_for(const LutConfig& config, const StateOptions& options, Device device);
  bool reserve(int slot, int64_t length) override;
  void release(int slot) override;
  bool copy(int from, int to) override;
  int64_t bytes() const override { return bytes_; }
  int num_slots() const override { return options_.num_slots; }
  bool can_ever_hold(int64_t length) const override { return length <= options_.max_length; }
  void touch() override;

  int64_t reserved(int slot) const { return length_[static_cast<size_t>(slot)]; }
  const StateOptions& options() const { return options_; }
  int64_t ring() const { return cache.dim(2); }
  StreamHandle* handle() const { return stream ? stream->handle() : nullptr; }
  std::unique_ptr<Stream> stream;  // null on the CPU
  Tensor cache;                    // i32 [layers, slots, ring, attention tables]
  StepMemory work;
  DecodeGraphs graphs;

 private:
  StateOptions options_;
  int64_t bytes_;
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
  void warm_up(const CancelToken* cancel) override;

 private:
  struct Step;
  void detect(const Block& block, const Tensor& x, LutStates& states) const;
  void attend(Step& step, size_t layer) const;
  void look_up(const Block& block, const Tensor& x, LutStates& states, Tensor& y, bool accumulate) const;
  Tensor logits(Step& step) const;
  Tensor enqueue(Step& step) const;

  LutConfig config_;
  LutWeights weights_;
  ModelInfo info_;
};

// For models/registry.cpp.
std::shared_ptr<Model> load_folder(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options);

}  // namespace trivium::lut
