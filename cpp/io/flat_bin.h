// The predecessor's model.bin: a header of 15 four-byte fields and all weights in one fixed order, float32 or
// bfloat16 (told apart by the file's size; the header does not say).
// Source: the published exporter of the gpt-oss course skeleton.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

namespace trivium::io {

inline constexpr int64_t kFlatBinHeaderBytes = 60;

// In the order of the file.
struct FlatBinHeader {
  int32_t vocab_size, hidden_size, num_experts, experts_per_token, intermediate_size, num_layers, head_dim,
      num_heads, num_kv_heads, seq_len, initial_context_length;
  float rope_theta, rope_scaling_factor;
  int32_t sliding_window;
  float swiglu_limit;
};

struct FlatBinModel {
  FlatBinHeader header;
  // The tensors under the names of OpenAI's checkpoint layout: embedding.weight, block.N.attn.qkv.weight, ...
  // Experts are dense: block.N.mlp.mlp1_weight [E, 2I, H] (gate and linear rows alternate), mlp2_weight [E,
  // H, I].
  std::shared_ptr<TensorArchive> weights;
};

// ModelFormatError when a field is out of range or the file has not exactly the size the header asks for.
FlatBinModel open_flat_bin(const std::string& path, LoadMode mode = LoadMode::automatic,
                           const CancelToken* cancel = nullptr);

// `start`: the first 60 bytes, or fewer in a shorter file.
FlatBinHeader parse_flat_bin_header(std::string_view start, const std::string& file_name);
std::vector<TensorEntry> flat_bin_tensors(const FlatBinHeader& header, int64_t file_size,
                                          const std::string& file_name);

}  // namespace trivium::io
