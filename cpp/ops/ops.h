// Public ops: each checks its arguments, allocates the result and calls the kernel of the tensors' device.
// All are differential-tested against float64 oracles. Errors are InvalidArgument (shapes, dtypes, devices,
// which the message names), NotImplemented (no kernel on that device) and the device's own.
//
// The functions that take a Stream* and an output write into memory the caller owns and do not allocate: what
// a model uses inside a step. A null stream is the device's synchronous default.
#pragma once

#include <optional>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"
#include "ops/weight.h"

namespace trivium::ops {

// Rows `ids` of `table`. ids i32 [tokens], table [vocab, dim] f32/bf16/f16 -> f32 [tokens, dim].
// InvalidArgument for an id outside [0, vocab).
Tensor embedding(const Tensor& ids, const Tensor& table);
void embedding(Stream* stream, const Tensor& ids, const Tensor& table, Tensor& y);

// w * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang & Sennrich 2019). x [..., dim] f32 or bf16, w
// [dim]. The result has x's dtype, or y's.
Tensor rms_norm(const Tensor& x, const Tensor& w, float eps);
void rms_norm(Stream* stream, const Tensor& x, const Tensor& w, float eps, Tensor& y);
// x += add, then y = rms_norm(x, w, eps): a residual sum and the norm behind it in one pass. x and add f32
// [..., dim], y f32 or bf16.
void add_rms_norm(Stream* stream, Tensor& x, const Tensor& add, const Tensor& w, float eps, Tensor& y);

// x w^T + bias in float32 accumulation: x [m, k] f32 or bf16 (bf16: the weights enter as bf16 too), w [n, k]
// dense or MXFP4, bias [n] or undefined -> f32 [m, n]. A row's bits do not depend on m.
Tensor linear(const Tensor& x, const Weight& w, const Tensor& bias = {});
// Writes y[:, column : column + n] of an f32 [m, width] tensor, adding to it when `accumulate`.
void linear(Stream* stream, const Tensor& x, const Weight& w, const Tensor& bias, Tensor& y,
            int64_t column = 0, bool accumulate = false);

// Rotary embedding (Su et al. 2021, half-split pairs (i, i + head_dim/2)) with YaRN scaling (Peng et al.
// 2023).
struct RopeScaling {
  double theta = 150000;
  double factor = 1;  // <= 1: plain RoPE
  double beta_fast = 32, beta_slow = 1;
  double original_context = 4096;
  bool truncate = false;
  std::optional<double> attention_factor;  // replaces the concentration 0.1 ln(factor) + 1
};
struct RopeFrequencies {
  std::vector<double> inv_freq;  // [head_dim / 2], radians a position
  double concentration = 1;      // multiplies cos and sin
};
RopeFrequencies rope_frequencies(int64_t head_dim, const RopeScaling& scaling);
// x [tokens, heads, head_dim] f32 rotated to `positions` (i32 [tokens]); a new tensor.
Tensor rope(const Tensor& x, const Tensor& positions, const RopeFrequencies& frequencies);

// Causal attention: q f32 [tokens, num_heads, head_dim] holds the last `tokens` of k's and v's positions,
// k and v [positions, num_kv_heads, head_dim] f32 or bf16; sinks [num_heads] or undefined: an extra logit in
// the softmax denominator; window: keys j with 0 <= i - j < window, 0 = all. -> f32 [tokens, num_heads,
// head_dim].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, int64_t window,
                 float scale);

// g sigmoid(alpha g) (u + 1), g = min(x[2j], limit), u = clamp(x[2j+1], -limit, limit). x f32 [..., 2 dim] ->
// [..., dim].
Tensor swiglu(const Tensor& x, float alpha = 1.702f, float limit = 7.0f);

// The top_k largest of each row of f32 logits [tokens, num_experts] (ties: lower index) and the softmax over
// them.
struct Routing {
  Tensor experts;  // i32 [tokens, top_k], descending logit
  Tensor weights;  // f32 [tokens, top_k]
};
Routing moe_route(const Tensor& logits, int64_t top_k);

// sum_k weights[t, k] (down[e] swiglu(gate_up[e] x[t] + gate_up_bias[e]) + down_bias[e]), e = experts[t, k].
// x [tokens, hidden] f32 or bf16; gate_up [num_experts, 2 inter, hidden] (gate and linear rows interleaved),
// down [num_experts, hidden, inter], dense or MXFP4 -> f32 [tokens, hidden].
struct Experts {
  Weight gate_up, down;
  Tensor gate_up_bias, down_bias;  // [num_experts, 2 inter], [num_experts, hidden]
  float alpha = 1.702f, limit = 7.0f;
};
Tensor moe_experts(const Tensor& x, const Routing& routing, const Experts& experts);

// Exact float32 values of an MXFP4 matrix: blocks u8 [..., rows, cols/32, 16], scales u8 [..., rows,
// cols/32].
Tensor mxfp4_decode(const Tensor& blocks, const Tensor& scales);

}  // namespace trivium::ops
