// Weights of a gpt-oss model, as they lie in the checkpoint: dense tensors bf16 (f16 and f32 too), experts
// MXFP4 or dense. V vocab_size, H hidden_size, I intermediate_size, E num_experts, Nq/Nk query/kv heads, D
// head_dim.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/cancel.h"
#include "io/safetensors.h"
#include "models/model.h"
#include "models/moe/config.h"
#include "ops/ops.h"
#include "ops/row_screen.h"

namespace trivium::moe {

struct LayerWeights {
  Tensor input_norm;    // [H]
  ops::Weight q, k, v;  // [Nq D, H], [Nk D, H], [Nk D, H]
  Tensor q_bias, k_bias, v_bias;
  ops::Weight qkv;      // on a GPU instead of the three: their rows under each other
  Tensor qkv_bias;      // the same; undefined without biases
  Tensor sinks;         // [Nq]
  ops::Weight o;        // [H, Nq D]
  Tensor o_bias;        // [H]
  Tensor post_norm;     // [H]
  ops::Weight router;   // [E, H]
  Tensor router_bias;   // [E]
  ops::Weight gate_up;  // [E, 2I, H], gate and linear rows interleaved
  Tensor gate_up_bias;  // [E, 2I]
  ops::Weight down;     // [E, H, I]
  Tensor down_bias;     // [E, H]
};

struct MoeWeights {
  Tensor embedding;  // [V, H]
  std::vector<LayerWeights> layers;
  Tensor final_norm;                                 // [H]
  ops::Weight unembedding;                           // [V, H]
  std::optional<ops::RowScreen> screen;              // of the unembedding, where it pays and memory allows
  std::shared_ptr<const io::TensorArchive> archive;  // keeps the mapping; null on a GPU
};

enum class Layout { hugging_face, openai };

// Finds every tensor and checks name, shape and dtype; then, with options.check_weights, scans the values
// (NaN and infinities in dense tensors, MXFP4 scales above 252). Dense experts that are stored [E, in, out]
// (Hugging Face bf16 re-exports) are transposed into memory, giving the source's pages back as it goes; so
// are mapped dense matrices of 2 MiB and more copied, for huge pages. MXFP4 experts stay where they are. For
// a GPU every tensor is uploaded as it is found, in the layout the kernels read: MXFP4 as stored, dense
// matrices in bf16 unless the precision is float32, q, k and v as one matrix; nothing stays mapped then.
// ModelFormatError names file and tensor; missing tensors are listed, at most five.
MoeWeights load_weights(const std::shared_ptr<const io::TensorArchive>& archive, const std::string& path,
                        const MoeConfig& config, Layout layout, const LoadOptions& options);

}  // namespace trivium::moe
