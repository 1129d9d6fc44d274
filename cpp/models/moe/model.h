// The gpt-oss mixture-of-experts transformer.
#pragma once

#include "models/moe/states.h"
#include "models/moe/weights.h"

namespace trivium::moe {

class MoeModel : public Model {
 public:
  MoeModel(MoeConfig config, MoeWeights weights, ModelInfo info,
           std::shared_ptr<const io::Tokenizer> tokenizer);

  const ModelInfo& info() const override { return info_; }
  const MoeConfig& config() const { return config_; }
  Dtype default_kv_dtype() const override { return activation_; }
  int64_t state_bytes(const StateOptions& options) const override;
  std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const override;
  Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override;
  void warm_up(const CancelToken* cancel) override;

 private:
  struct Step;
  void embed(Step& step) const;
  void attention_layer(Step& step, int64_t layer) const;
  void moe_layer(Step& step, int64_t layer) const;
  Tensor logits(Step& step) const;
  Tensor enqueue(Step& step) const;

  MoeConfig config_;
  MoeWeights weights_;
  ModelInfo info_;
  ops::RopeFrequencies rope_;
  Dtype activation_;  // of matmul inputs: f32 or bf16
};

// Factories for models/registry.cpp. `config_text` is config.json as read from `config_path`.
std::shared_ptr<Model> load_hugging_face(const std::string& folder, const std::string& config_text,
                                         const LoadOptions& options);
std::shared_ptr<Model> load_openai(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options);
std::shared_ptr<Model> load_flat_bin(const std::string& file, const LoadOptions& options);

}  // namespace trivium::moe
