// A gpt-oss checkpoint of a few kilobytes in the published layout, written by the library's own writer.
#pragma once

#include <map>
#include <string>

#include "io/safetensors.h"
#include "models/model.h"
#include "support/backend.h"
#include "support/inputs.h"
#include "support/temp_folder.h"

namespace trivium::testing {

// H != I, so that a forgotten transposition cannot pass; a window of 5 that a ring of 16 wraps over.
inline constexpr int64_t kVocab = 97, kHidden = 32, kInter = 64, kLayers = 3, kHeads = 4, kKvHeads = 2,
                         kHeadDim = 16, kExperts = 4;

inline const char* const kTinyConfig = R"({
  "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 97, "hidden_size": 32,
  "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5,
  "max_position_embeddings": 64, "rope_theta": 150000, "eos_token_id": 2,
  "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                   "original_max_position_embeddings": 4096, "truncate": false},
  "quantization_config": {"quant_method": "mxfp4"}})";

using Tensors = std::map<std::string, Tensor>;

// MXFP4 experts as blocks and scales.
inline Tensors tiny_tensors() {
  Tensors t;
  uint64_t seed = 1;
  const auto dense = [&](const std::string& name, const Shape& shape, double scale) {
    t[name] = random_normal(shape, seed++, scale).to(Dtype::bf16);
  };
  const auto gain = [&](const std::string& name) {
    Tensor g = random_normal({kHidden}, seed++, 0.1);
    for (int64_t i = 0; i < kHidden; ++i) g.data_as<float>()[i] += 1;
    t[name] = g.to(Dtype::bf16);
  };
  const auto mxfp4 = [&](const std::string& name, int64_t rows, int64_t cols) {
    t[name + "_blocks"] = random_bytes({kExperts, rows, cols / 32, 16}, seed++);
    t[name + "_scales"] = random_bytes({kExperts, rows, cols / 32}, seed++, 122, 124);
  };
  dense("model.embed_tokens.weight", {kVocab, kHidden}, 1);
  for (int64_t l = 0; l < kLayers; ++l) {
    const std::string p = concat("model.layers.", l, ".");
    gain(p + "input_layernorm.weight");
    gain(p + "post_attention_layernorm.weight");
    for (const auto& [name, rows] :
         {std::pair{"q", kHeads * kHeadDim}, {"k", kKvHeads * kHeadDim}, {"v", kKvHeads * kHeadDim}}) {
      dense(concat(p, "self_attn.", name, "_proj.weight"), {rows, kHidden}, 0.3);
      dense(concat(p, "self_attn.", name, "_proj.bias"), {rows}, 0.3);
    }
    dense(p + "self_attn.o_proj.weight", {kHidden, kHeads * kHeadDim}, 0.2);
    dense(p + "self_attn.o_proj.bias", {kHidden}, 0.3);
    dense(p + "self_attn.sinks", {kHeads}, 1);
    dense(p + "mlp.router.weight", {kExperts, kHidden}, 0.3);
    dense(p + "mlp.router.bias", {kExperts}, 0.3);
    mxfp4(p + "mlp.experts.gate_up_proj", 2 * kInter, kHidden);
    dense(p + "mlp.experts.gate_up_proj_bias", {kExperts, 2 * kInter}, 0.3);
    mxfp4(p + "mlp.experts.down_proj", kHidden, kInter);
    dense(p + "mlp.experts.down_proj_bias", {kExperts, kHidden}, 0.3);
  }
  gain("model.norm.weight");
  dense("lm_head.weight", {kVocab, kHidden}, 0.3);
  return t;
}

class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(const Tensors& tensors = tiny_tensors(), const std::string& config = kTinyConfig) {
    folder_.write("config.json", config);
    io::save_safetensors(folder_.file("model.safetensors"), {tensors.begin(), tensors.end()});
  }
  std::string path() const { return folder_.file(""); }
  const TempFolder& folder() const { return folder_; }
  std::shared_ptr<Model> load(Precision precision = Precision::float32, Device device = test_device()) const {
    LoadOptions options;
    options.device = device;
    options.precision = precision;
    return load_model(path(), options);
  }

 private:
  TempFolder folder_;
};

}  // namespace trivium::testing
