// Configuration of the xLSTM language models (config.json's model_type "xlstm").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"

namespace trivium::xlstm {

struct XlstmConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t qk_dim = 0;             // of all heads
  int64_t v_dim = 0;              // of all heads
  int64_t intermediate_size = 0;  // of the feed-forward network
  double norm_eps = 1e-6;
  double eps = 1e-6;           // of the cell's denominator
  double gate_soft_cap = 0;    // 0: none
  double logit_soft_cap = 0;   // 0: none
  bool fused_weights = false;  // weight_mode "fused"
  bool tie_word_embeddings = false;
  std::vector<int32_t> eos_ids;

  int64_t head_qk() const { return qk_dim / num_heads; }
  int64_t head_v() const { return v_dim / num_heads; }
};

// ModelFormatError lists everything that is wrong, starting with `name`.
XlstmConfig parse_config(const io::JsonValue& json, const std::string& name);

}  // namespace trivium::xlstm
