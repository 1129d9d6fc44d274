// Argument blocks of the mLSTM kernels (matrix-memory cell of xLSTM, Beck et al. 2024). B batch, NH heads, S
// tokens, DQ size of a query or key, DV of a value, L chunk size, NC = ceil(S / L) chunks.
//
//   m_t = max(lf_t + m_{t-1}, li_t)      f' = exp(lf_t + m_{t-1} - m_t)      i' = exp(li_t - m_t)
//   C_t = f' C_{t-1} + i' k_t v_t^T      n_t = f' n_{t-1} + i' k_t           nt_t = scale n_t . q_t
//   den_t = max(|nt_t|, exp(-m_t))       h_t = scale C_t^T q_t / (den_t + eps)
//
// li is the input gate's pre-activation (or its log sigmoid), lf the log sigmoid of the forget gate's.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/half.h"
#include "ops/args.h"

namespace trivium {

// Element (b, h, t, d) lies at data[b * batch + h * head + t * token + d]; strides count elements.
struct MlstmStrides {
  int64_t batch, head, token;
};

struct MlstmSizes {
  int64_t batch, heads, tokens, dqk, dv;
  int64_t chunk;  // L: states are kept every `chunk` tokens; the last chunk may be short
  TRIVIUM_INLINE constexpr int64_t num_chunks() const { return (tokens + chunk - 1) / chunk; }
};

struct MlstmOptions {
  float scale;            // of q
  float eps;              // added to the denominator
  float m_floor;          // outputs use max(m_t, m_floor); -infinity: off
  int32_t sigmoid_input;  // li is a log sigmoid: every m is 0 and the floor is off
  int32_t normalize;      // 0 (with sigmoid_input only): h = scale C^T q
};

enum class MlstmForget : int32_t {
  preactivation = 0,
  log = 1,        // the log sigmoid itself
  cumulative = 2  // its sums from the start of each chunk
};

// li[r, t], lf[r, t] of the gates in any of their forms.
struct MlstmGatesArgs {
  const void *i, *f;  // [rows, tokens] dtype (f32, bf16, f16)
  float *li, *lf;     // [rows, tokens]
  int64_t rows, tokens, chunk;
  MlstmForget forget;
  int32_t sigmoid_input;  // li = log sigmoid(i)
  Dtype dtype;
};

inline constexpr int32_t kMlstmStates = 1, kMlstmOutput = 2;

// Floats of the work memory of GPU kernels: sums of gates for every token and chunk, and, for the backward
// pass, three values for each pair of tokens of a chunk, two vectors like a key and a few scalars for each
// token.
constexpr int64_t mlstm_forward_workspace(const MlstmSizes& s) {
  return s.batch * s.heads * (4 * s.tokens + 2 * s.num_chunks());
}
constexpr int64_t mlstm_backward_workspace(const MlstmSizes& s) {
  return mlstm_forward_workspace(s) +
         s.batch * s.heads * (s.tokens * (3 * s.chunk + 2 * s.dqk + 3) + s.num_chunks());
}
constexpr int64_t mlstm_recurrent_workspace(const MlstmSizes& s) { return 3 * s.batch * s.heads * s.tokens; }

// States at chunk boundaries, outputs, or both. c_states[.., 0] is the initial state, [.., NC] the last one.
struct MlstmForwardArgs {
  const void *q, *k, *v;       // [B, NH, S, DQ], [.., DQ], [.., DV] dtype (f32, bf16, f16)
  const float *li, *lf;        // [B, NH, S]
  const float *c0, *n0, *m0;   // [B, NH, DQ, DV], [B, NH, DQ], [B, NH], or all null: zeros
  float *c_states, *n_states;  // [B, NH, NC + 1, DQ, DV], [B, NH, NC + 1, DQ]; see parts
  float* m_states;             // [B, NH, NC + 1]
  float *c_last, *n_last;      // [B, NH, DQ, DV], [B, NH, DQ] or null
  float* m_last;               // [B, NH] or null
  void* h;                     // [B, NH, S, DV] dtype
  float *den, *nt, *m;         // [B, NH, S]: denominator before eps, its signed form, stabiliser; nt or null
  MlstmStrides qs, ks, vs, hs;
  MlstmSizes size;
  MlstmOptions options;
  // kMlstmStates: computes the states (and stores all when c_states is given, which GPUs need); without it
  // c_states, n_states and m_states are inputs. kMlstmOutput: computes h, den, nt and m.
  int32_t parts;
  Dtype dtype;
  float* workspace;  // GPU only: mlstm_forward_workspace() floats
};

// Gradients. With G = dh / (den + eps), and the m of every state taken as constants (h does not depend on
// them but through eps). `exact` adds the denominator's path; without it n is treated as constant too.
struct MlstmBackwardArgs {
  const void *q, *k, *v, *dh;        // as in forward; dh like h
  const float *li, *lf;              // [B, NH, S]
  const float *c0, *n0, *m0;         // or null
  const float *c_states, *n_states;  // of forward, or null: computed again
  const float* m_states;             // [B, NH, NC + 1] or null: computed again
  const float *den, *m;              // [B, NH, S] of forward
  const float* nt;                   // or null: computed again when exact
  // Of forward, contiguous: kMlstmStates alone needs it, with nt, for the denominator's path when exact.
  const void* h = nullptr;
  const float *dc_last, *dn_last;  // [B, NH, DQ, DV], [B, NH, DQ] or null: zeros
  float *dc_states, *dn_states;    // of boundaries dc_first..NC: [B, NH, NC + 1 - dc_first, DQ, DV], or null
  void *dq, *dk, *dv;              // contiguous, dtype
  float *di, *df;                  // [B, NH, S]
  float *dc0, *dn0, *dm0;          // of the initial state, or null
  float* workspace;                // GPU only: mlstm_backward_workspace() floats
  MlstmStrides qs, ks, vs, dhs;
  int64_t c_slots;   // boundaries in c_states and n_states: NC or NC + 1
  int64_t dc_first;  // 0 or 1
  MlstmSizes size;
  MlstmOptions options;
  // kMlstmStates: computes dc, dn at chunk boundaries; without it dc_states and dn_states are inputs.
  // kMlstmOutput: computes dq, dk, dv, di and df.
  int32_t parts;
  int32_t exact;
  int32_t preactivation;  // di, df are of the pre-activations; 0: of li and lf
  Dtype dtype;
};

// Token after token, updating the state in place (S = 1: one step of generation).
struct MlstmRecurrentArgs {
  const void *q, *k, *v;  // [B, NH, S, DQ], [.., DQ], [.., DV] dtype
  const float *li, *lf;   // [B, NH, S]
  void* c;                // [B, NH, DQ, DV] c_dtype (f32, bf16)
  float *n, *m;           // [B, NH, DQ], [B, NH]
  void* h;                // [B, NH, S, DV] dtype
  float *den, *m_out;     // [B, NH, S] or null
  MlstmStrides qs, ks, vs, hs;
  MlstmSizes size;
  MlstmOptions options;  // m_floor is not used: the recurrence needs m itself
  Dtype dtype, c_dtype;
  float* workspace;  // GPU only: mlstm_recurrent_workspace() floats
};

// What a language model's step needs: many sequences, each with a state of constant size in its slot.

inline constexpr int64_t kMlstmSlotChunk = 64;
inline constexpr int64_t kMlstmSlotTile = 64;  // rows and columns of C that one block of a GPU carries

// Tiles of a head's C, each of which keeps an m of its own, so that no block reads what another one writes.
constexpr int64_t mlstm_slot_tiles(int64_t dqk, int64_t dv) {
  return ((dqk + kMlstmSlotTile - 1) / kMlstmSlotTile) * ((dv + kMlstmSlotTile - 1) / kMlstmSlotTile);
}

// Float32 values of one head's state in a slot; what they mean is the backend's own: the state at the last
// multiple of kMlstmSlotChunk tokens, and the keys, values and gates of the tokens since.
constexpr int64_t mlstm_slot_floats(int64_t dqk, int64_t dv) {
  const int64_t keys = (dqk + 15) / 16 * 16, values = (dv + 31) / 32 * 32;
  return keys * values + keys + kMlstmSlotChunk * (keys + values) + 2 * kMlstmSlotChunk +
         (mlstm_slot_tiles(dqk, dv) + 15) / 16 * 16;
}

// Consecutive tokens of one sequence: rows [row, row + count) of the step, positions start, start + 1, ...
// A count of 0 does nothing: it pads a step.
struct MlstmSegment {
  int32_t slot, start, row, count;
  int32_t further = 0;  // entries of MlstmSegmentsArgs::owners before this segment's
};

// Chunks that a segment reaches into beyond its first.
constexpr int64_t mlstm_further_chunks(int64_t start, int64_t count) {
  return count == 0 ? 0 : (start % kMlstmSlotChunk + count - 1) / kMlstmSlotChunk;
}
// The most there can be in a step: two tokens may already lie in two chunks.
constexpr int64_t mlstm_most_further_chunks(int64_t segments, int64_t tokens) {
  return tokens / kMlstmSlotChunk + (segments < tokens / 2 ? segments : tokens / 2);
}
// Floats of the state before one of those chunks.
constexpr int64_t mlstm_chunk_state_floats(int64_t heads, int64_t dqk, int64_t dv) {
  return heads * (dqk * dv + dqk + 1);
}

// The cell over the segments of a step. Work is cut at multiples of kMlstmSlotChunk from the start of the
// sequence, so a token's bits depend on its position and its past only. A segment that starts at 0 starts
// from the zero state.
struct MlstmSegmentsArgs {
  const float *q, *k, *v;        // row t, head h: q[t * stride + h * dqk + d], v[t * stride + h * dv + d]
  const float *i, *f;            // pre-activations: i[t * gate_stride + h]
  const MlstmSegment* segments;  // [num_segments], at most one a slot
  float* slots;                  // [num slots][slot_stride]: heads * mlstm_slot_floats() of each are used
  float* h;                      // [rows, heads, dv]
  int64_t num_segments, heads, dqk, dv, stride, gate_stride, slot_stride;
  float gate_cap;  // gates are gate_cap tanh(x / gate_cap); 0: as they are
  MlstmOptions options;
  // GPU only: the longest count, and for each of the segments' further chunks, in order, the segment it
  // belongs to and room for the state before it.
  int64_t longest = 0, num_further = 0;
  const int32_t* owners = nullptr;  // [num_further]
  float* chunk_states = nullptr;    // [num_further, mlstm_chunk_state_floats()]
};

// y = sigmoid(gate) * (w * (x - mean) / sqrt(var + eps) + bias), mean and var over each head (Ba et al.
// 2016).
struct HeadNormArgs {
  const float* x;     // [rows, heads, dim]
  const float* gate;  // row t at gate + t * gate_stride: [heads, dim]
  VectorView w;       // [heads * dim]
  VectorView bias;    // or absent
  void* y;            // [rows, heads, dim] y_dtype (f32, bf16)
  int64_t rows, heads, dim, gate_stride;
  float eps;
  Dtype y_dtype;
};

struct SiluMulArgs {  // y = x[:, :dim] * sigmoid(x[:, :dim]) * x[:, dim:]   (Shazeer 2020)
  const float* x;     // [rows, 2 dim]
  void* y;            // [rows, dim] y_dtype (f32, bf16)
  int64_t rows, dim;
  Dtype y_dtype;
};

struct SoftCapArgs {  // x = cap tanh(x / cap) in place
  float* x;           // [count]
  int64_t count;
  float cap;
};

}  // namespace trivium
