// config.json of a LUT language model (model_type "lut_transformer"), as trivium.lut.LUTTransformer writes
// it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"

namespace trivium::lut {

struct LutConfig {
  int64_t vocab_size = 0, embedding_dim = 0;
  int64_t context_size = 0;    // S: a position attends to the S - 1 before it
  int64_t positional_dim = 0;  // Npe
  int64_t num_layers = 0, num_heads = 0;
  int64_t num_tables = 0;         // of a head, of a feed-forward layer and of the unembedder
  int64_t num_anchors = 0;        // pairs of a table there
  int64_t attention_anchors = 0;  // pairs of an attention table
  bool no_ffn = false, unified_pe = false;
  bool use_batch_norm = false;  // of what attention and feed-forward layers give, before it is added
  double cmp_eps = 0;
  int64_t max_positions = 0;  // prompt + generated; the state of a sequence does not grow with it
  std::vector<int32_t> eos_ids;
};

// ModelFormatError lists everything that is wrong.
LutConfig parse_config(const io::JsonValue& json, const std::string& name);

}  // namespace trivium::lut
