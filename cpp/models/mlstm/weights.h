// Weights of an xLSTM language model, as they lie in the checkpoint (f32, bf16 or f16). V vocab_size, D
// hidden_size, NH heads, Q and W dimensions of all heads' queries and values, U intermediate_size.
#pragma once

#include <memory>
#include <vector>

#include "io/safetensors.h"
#include "models/mlstm/config.h"
#include "models/model.h"
#include "ops/ops.h"

namespace trivium::xlstm {

struct LayerWeights {
  Tensor norm_mlstm;        // [D]
  ops::Weight q, k, v, o;   // [Q, D], [Q, D], [W, D], [W, D] (o: output gate)
  ops::Weight qkvo;         // [2 Q + 2 W, D], on a GPU instead of the four: their rows under each other
  ops::Weight i, f;         // [NH, D]
  Tensor i_bias, f_bias;    // [NH]
  ops::Weight gates;        // [2 NH, D], on a GPU: i and f
  Tensor gates_bias;        // [2 NH], on a GPU
  Tensor head_norm;         // [W]
  ops::Weight out;          // [D, W]
  Tensor norm_ffn;          // [D]
  ops::Weight up_gate, up;  // [U, D]
  ops::Weight ups;          // [2 U, D], on a GPU: up_gate and up
  ops::Weight down;         // [D, U]
};

struct XlstmWeights {
  Tensor embedding;  // [V, D]
  std::vector<LayerWeights> layers;
  Tensor out_norm;                                   // [D]
  ops::Weight lm_head;                               // [V, D]
  std::shared_ptr<const io::TensorArchive> archive;  // keeps the mapping; null on a GPU
};

// Finds every tensor under the names of transformers' releases (projections also as query, key and value;
// fused matrices) and checks shapes, types and, with options.check_weights, values. ModelFormatError names
// file and tensor; missing tensors are listed, at most five. For a GPU every tensor is uploaded as it is
// found, matrices in bf16 unless the precision is float32.
XlstmWeights load_weights(const std::shared_ptr<const io::TensorArchive>& archive, const std::string& path,
                          const XlstmConfig& config, const LoadOptions& options);

}  // namespace trivium::xlstm
