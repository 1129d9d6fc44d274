// Configuration of the gpt-oss family of mixture-of-experts transformers (config.json's model_type
// "gpt_oss").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/flat_bin.h"
#include "io/json.h"
#include "ops/ops.h"

namespace trivium::moe {

struct MoeConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of one expert
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;           // experts per token
  int64_t sliding_window = 0;  // keys a sliding layer sees, the query's own included
  std::vector<bool> sliding;   // [num_layers]
  int64_t odd_window = 0;      // LoadOptions::odd_window
  ops::RopeScaling rope;
  double rms_norm_eps = 1e-5;
  double swiglu_alpha = 1.702;
  double swiglu_limit = 7.0;
  int64_t max_positions = 131072;
  bool attention_bias = true;        // q, k, v and o projections have biases
  bool tie_word_embeddings = false;  // the unembedding is the embedding table
  bool mxfp4 = false;                // quantization_config names mxfp4
  std::vector<int32_t> eos_ids;      // eos_token_id: one number or a list

  int64_t q_dim() const { return num_heads * head_dim; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
  // Keys a layer sees, the query's own included; 0 = all before it.
  int64_t window(int64_t layer) const {
    return sliding[static_cast<size_t>(layer)] ? sliding_window : odd_window;
  }
};

// From a Hugging Face config.json. Newer spellings (rope_parameters, num_experts, swiglu_alpha) are read too;
// unknown keys are ignored. ModelFormatError lists every violated constraint, starting with `name`.
MoeConfig parse_hf_config(const io::JsonValue& json, const std::string& name);
// From the config.json of OpenAI's original/ folder.
MoeConfig parse_openai_config(const io::JsonValue& json, const std::string& name);
// From the header of a model.bin.
MoeConfig from_flat_bin(const io::FlatBinHeader& header, const std::string& name);

}  // namespace trivium::moe
