// One POD argument block per kernel: the contract between ops and backends. Pointers are device pointers of
// the kernel's device; sizes count elements; matrices are row-major. Part of the backend ABI.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace trivium {

// How a weight matrix [rows, cols] is stored. mxfp4 (OCP MX v1.0): `data` holds blocks u8 [rows, cols/32, 16]
// (byte k = elements 2k low, 2k+1 high nibble), `scales` u8 [rows, cols/32] (E8M0, <= 252).
enum class WeightFormat : int32_t { f32 = 0, bf16 = 1, f16 = 2, mxfp4 = 3 };

struct WeightView {
  const void* data;
  const uint8_t* scales;  // mxfp4 only
  WeightFormat format;
};

// Optional vector of f32, bf16 or f16 (biases, gains, sinks).
struct VectorView {
  const void* data;  // null: absent
  Dtype dtype;
};

struct ConvertArgs {  // to[i] = from[i], round to nearest even; f32, bf16, f16, f64
  const void* from;
  void* to;
  int64_t count;
  Dtype from_dtype, to_dtype;
};

struct EmbeddingArgs {  // y[t, :] = table[ids[t], :]
  const int32_t* ids;   // [tokens], each in [0, vocab)
  const void* table;    // [vocab, dim] table_dtype (f32, bf16, f16)
  float* y;             // [tokens, dim]
  int64_t tokens, vocab, dim;
  Dtype table_dtype;
};

// y = w * x / sqrt(mean(x^2) + eps) per row (Zhang & Sennrich 2019); float32 inside. With `add`, x += add
// first.
struct RmsNormArgs {
  void* x;                     // [rows, dim] x_dtype (f32, bf16); written only with `add`
  const float* add = nullptr;  // [rows, dim] or null; x is f32 then
  VectorView w;                // [dim]
  void* y;                     // [rows, dim] y_dtype (f32, bf16)
  int64_t rows, dim;
  float eps;
  Dtype x_dtype, y_dtype;
};

struct LinearArgs {  // y = x w^T + bias (+ y when accumulate), float32 accumulation
  const void* x;     // [m, k] x_dtype (f32, bf16), row stride x_stride
  WeightView w;      // [n, k]
  VectorView bias;   // [n]
  float* y;          // [m, n], row stride y_stride
  int64_t m, n, k, x_stride, y_stride;
  Dtype x_dtype;  // bf16: weights enter the product as bf16 too
  int32_t accumulate;
};

// A copy q of a weight matrix w [n, k] in few bits and what it says about products with it: in exact
// arithmetic |x . w[r] - step[r] (x . q[r])| <= |x| error[r], norms being Euclidean. error[r] also covers the
// rounding of a float32 product; where it is +inf the copy says nothing about the row. q's elements are
// signed bytes, or where the CPU level decodes them fast (registry.h, cpu_screen_bits) kScreenLevels of 6-bit
// codes: element i is that of bits 6 i .. 6 i + 5 of its row.
struct RowScreenView {
  const uint8_t* codes;  // [n, row_bytes]
  const float* step;     // [n]
  const float* error;    // [n]
  const float* norm;     // [n] upper bound of |step[r] q[r]|
  int64_t row_bytes;     // of whole groups; what is behind column k counts for nothing
};

inline constexpr int64_t kScreenGroup = 64;  // columns

// Denser where weights are, so that a normal row's error is 0.8 of even steps'.
struct alignas(64) ScreenLevels {
  int8_t of_code[64];
};
constexpr ScreenLevels make_screen_levels() {
  ScreenLevels levels{};
  for (int code = 0; code < 32; ++code) {
    const double u = (2 * code + 1) / 63.0, cube = u * u * u;
    const int level = static_cast<int>(127 * (0.45 * u + 0.35 * cube + 0.2 * cube * u * u) + 0.5);
    levels.of_code[32 + code] = static_cast<int8_t>(level);
    levels.of_code[31 - code] = static_cast<int8_t>(-level);
  }
  return levels;
}
inline constexpr ScreenLevels kScreenLevels = make_screen_levels();

// y[i, r] = x[i] . w[r], the bits linear gives, for every r that may hold row i's maximum; -inf for others.
struct LinearMaximumArgs {
  const void* x;  // [m, k] x_dtype (f32, bf16), contiguous
  WeightView w;   // [n, k] bf16
  RowScreenView screen;
  float* y;  // [m, n]
  int64_t m, n, k;
  Dtype x_dtype;
};

struct RopeTableArgs {       // table[t, i] = m * (cos, sin)(positions[t] * inv_freq[i])
  const int32_t* positions;  // [tokens]
  const double* inv_freq;    // [pairs]
  float* table;              // [tokens, pairs, 2]
  int64_t tokens, pairs;
  double concentration;  // m; YaRN (Peng et al. 2023) attention temperature
};

struct RopeArgs {  // rotates pairs (i, i + head_dim/2) of every head in place (Su et al. 2021, half-split)
  float* x;        // [tokens, heads, head_dim], token stride x_stride
  const float* table;  // [tokens, head_dim/2, 2]
  int64_t tokens, heads, head_dim, x_stride;
};

// Keys and values of one layer for many sequences. Block b of slot s lies in page
// block_table[s * blocks_per_slot + b % blocks_per_slot]: with fewer blocks than positions it is a ring.
struct PagedKv {
  void* k;                     // [pages, num_kv_heads, page_size, head_dim] dtype
  void* v;                     // the same
  const int32_t* block_table;  // [slots, blocks_per_slot]
  int32_t blocks_per_slot;
  int32_t page_size;  // positions in a page
  Dtype dtype;        // f32 or bf16
};

struct RopeKvArgs {          // rotates q in place and writes rotated k, and v, to the cache
  float* qkv;                // [tokens, (num_heads + 2 num_kv_heads) * head_dim]: q heads, k heads, v heads
  const float* table;        // [tokens, head_dim/2, 2]
  const int32_t* slots;      // [tokens]
  const int32_t* positions;  // [tokens]
  PagedKv kv;
  int64_t tokens, num_heads, num_kv_heads, head_dim;
};

// A query's keys are cut into at most kAttentionSplits runs whose bounds depend on its position alone; GPUs
// work on them in parallel and merge them in order, so that a row's bits do not depend on the batch.
inline constexpr int kAttentionSplits = 16;

// float32 values of AttentionArgs::workspace: a maximum, a sum and head_dim values for each split.
constexpr int64_t attention_workspace(int64_t tokens, int64_t num_heads, int64_t head_dim) {
  return tokens * num_heads * kAttentionSplits * (head_dim + 2);
}

// Causal attention of queries at `positions` over the cached keys of their slots, with an optional sink logit
// per head in the softmax denominator (Xiao et al. 2023, learned form of gpt-oss) and a sliding window.
struct AttentionArgs {
  const float* q;  // [tokens, num_heads, head_dim], token stride q_stride
  PagedKv kv;
  const int32_t* slots;      // [tokens]
  const int32_t* positions;  // [tokens]
  VectorView sinks;          // [num_heads] or absent
  void* out;                 // [tokens, num_heads, head_dim] out_dtype (f32, bf16)
  int64_t tokens, num_heads, num_kv_heads, head_dim, q_stride;
  int64_t window;  // keys j with 0 <= i - j < window; 0 = all j <= i
  float scale;
  Dtype out_dtype;
  float* workspace =
      nullptr;  // attention_workspace() floats, or null: partial results of a query's splits (GPU only)
};

struct SwigluArgs {  // a = g * sigmoid(alpha g) * (u + 1), g = min(x_2j, limit), u = clamp(x_2j+1, +-limit)
  const float* x;    // [rows, 2 dim], gate and linear interleaved
  void* y;           // [rows, dim] y_dtype (f32, bf16)
  int64_t rows, dim;
  float alpha, limit;
  Dtype y_dtype;
};

struct MoeRouteArgs {   // the top_k largest logits of each row (ties: lower index), softmax over them
  const float* logits;  // [tokens, num_experts]
  int32_t* experts;     // [tokens, top_k], descending logit
  float* weights;       // [tokens, top_k]
  int64_t tokens, num_experts, top_k;
};

struct MoePermuteArgs {    // stable order of the tokens * top_k choices by expert
  const int32_t* experts;  // [tokens, top_k]
  int32_t* offsets;        // [num_experts + 1]: rows of expert e are [offsets[e], offsets[e + 1])
  int32_t* tokens_of_row;  // [tokens * top_k]: the token a sorted row belongs to
  int32_t* row_of_choice;  // [tokens, top_k]: the sorted row of a choice
  int64_t tokens, num_experts, top_k;
};

struct MoeGateUpArgs {     // act[r] = swiglu(w[e] x[tokens_of_row[r]] + bias[e]) for the rows r of expert e
  const void* x;           // [tokens, hidden] dtype (f32, bf16)
  WeightView w;            // [num_experts, 2 inter, hidden], gate and linear rows interleaved
  VectorView bias;         // [num_experts, 2 inter]
  const int32_t* offsets;  // [num_experts + 1]
  const int32_t* tokens_of_row;  // [rows]
  void* act;                     // [rows, inter] dtype
  int64_t rows, num_experts, hidden, inter;
  float alpha, limit;
  Dtype dtype;
};

struct MoeDownArgs {       // y[r] = w[e] act[r] + bias[e]
  const void* act;         // [rows, inter] dtype (f32, bf16)
  WeightView w;            // [num_experts, hidden, inter]
  VectorView bias;         // [num_experts, hidden]
  const int32_t* offsets;  // [num_experts + 1]
  float* y;                // [rows, hidden]
  int64_t rows, num_experts, hidden, inter;
  Dtype dtype;
};

struct MoeCombineArgs {          // x[t] += sum_k weights[t, k] * y[row_of_choice[t, k]], k in order
  const float* y;                // [tokens * top_k, hidden]
  const float* weights;          // [tokens, top_k]
  const int32_t* row_of_choice;  // [tokens, top_k]
  float* x;                      // [tokens, hidden]
  int64_t tokens, hidden, top_k;
};

struct Mxfp4DecodeArgs {  // exact values of an MXFP4 matrix
  const uint8_t* blocks;  // [rows, cols / 32, 16]
  const uint8_t* scales;  // [rows, cols / 32]
  float* y;               // [rows, cols]
  int64_t rows, cols;
};

struct SampleParams {  // of one row; see ops/sampling.h for the definition
  float temperature, top_p, min_p;
  int32_t top_k;
  uint64_t seed, step;
};

struct SampleArgs {            // one token per row
  const float* logits;         // [rows, vocab]
  const SampleParams* params;  // [rows]
  int32_t* tokens;             // [rows]; -1 when the row holds a NaN
  int64_t rows, vocab;
};

}  // namespace trivium
