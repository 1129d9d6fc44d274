// The mLSTM, the matrix-memory cell of xLSTM (Beck et al. 2024), in chunkwise, recurrent and backward form. B
// batch, NH heads, S >= 1 tokens, DHQK and DHHV head dimensions, L chunk size, NC = ceil(S / L). Messages use
// the argument names of the Python functions (matQ, vecI, ...). Gates are pre-activations, stabilisers
// natural logs.
#pragma once

#include <functional>
#include <optional>
#include <utility>

#include "core/stream.h"
#include "core/tensor.h"
#include "ops/mlstm_args.h"

namespace trivium::ops {

struct MlstmSettings {
  std::optional<double> qk_scale = std::nullopt;  // of q; absent: DHQK^-1/2
  double eps = 1e-6;                              // added to the denominator
  int64_t chunk_size = 64;                        // >= 1; on a GPU 16, 32, ... 1024
  double m_floor = -10;  // outputs use max(m, m_floor), which changes nothing but rounding; -inf: off
  bool sigmoid_input_gate = false;
  bool normalize = true;       // false only with the sigmoid input gate: no denominator
  bool strict_chunks = false;  // S must be a multiple of chunk_size
  bool check_finite = false;   // NaN and infinities in what is given are errors; m may be -infinity: empty
};

// float32: c [B, NH, DHQK, DHHV], n [B, NH, DHQK], m [B, NH]; all undefined: no state. With the sigmoid input
// gate there is no m: it is undefined in what a caller gives and gets, but 0 in arrays of all states.
struct MlstmState {
  Tensor c = {}, n = {}, m = {};
};

// q, k [B, NH, S, DHQK], v [B, NH, S, DHHV] of one type (f32, bf16, f16), last extent contiguous; gates i, f
// [B, NH, S] of one type.
struct MlstmInputs {
  Tensor q, k, v, i, f;
};

// h has q's dtype and v's shape; n_out (the denominator before eps), nt (its signed form) and m_out are f32
// [B, NH, S]. states: c [B, NH, (NC + 1) DHQK, DHHV], n [B, NH, (NC + 1) DHQK], m [B, NH, NC + 1].
struct MlstmOutput {
  Tensor h, n_out, nt, m_out;
  MlstmState last, states;
};
MlstmOutput mlstm_chunkwise_fw(const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
                               bool want_last, bool want_states);

// Where a call runs. Without a stream on the device's own, with memory of its own, and the call returns when
// its results are there; a caller with a stream and memory of its own (XLA) gives both, and the call returns
// when its work is queued.
struct MlstmQueue {
  Stream* stream = nullptr;
  // Work memory that lives until the queued work is done.
  std::function<void*(int64_t bytes)> allocate = nullptr;
};
// mlstm_chunkwise_fw into tensors of the caller, contiguous; an undefined state of `out` is not wanted.
void mlstm_chunkwise_fw_into(const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
                             const MlstmOutput& out, const MlstmQueue& queue);

// exact: the gradient of h with every stabiliser constant, which is the true one but for terms of eps.
// approx: the denominator and n count as constants too, as in the published kernels.
enum class MlstmGradMode { exact, approx };
MlstmGradMode parse_mlstm_grad_mode(std::string_view text);

struct MlstmGradients {
  Tensor dq, dk, dv, di, df;  // shapes and dtypes of the inputs
  MlstmState initial;         // c and n and m of the initial state; undefined without one
};
struct MlstmGradientInputs {
  Tensor n_out, m_out, nt = {};       // of the forward pass; nt may be undefined
  Tensor dh;                          // like h
  Tensor dc_last = {}, dn_last = {};  // of the last state, or undefined
  MlstmState states = {};             // of the forward pass with the same chunk size; each may be undefined
};
MlstmGradients mlstm_chunkwise_bw(const MlstmInputs& x, const MlstmState& initial,
                                  const MlstmGradientInputs& g, const MlstmSettings& settings,
                                  MlstmGradMode mode);

// mlstm_chunkwise_bw into contiguous tensors of the caller; di and df are f32, out.initial as `initial`.
void mlstm_chunkwise_bw_into(const MlstmInputs& x, const MlstmState& initial, const MlstmGradientInputs& g,
                             const MlstmSettings& settings, MlstmGradMode mode, const MlstmGradients& out,
                             const MlstmQueue& queue);

// Token by token; `state` (c f32 or bf16, n and m f32) is updated in place. den and m_out f32 [B, NH, S].
struct MlstmRecurrentOutput {
  Tensor h, n_out, m_out;
};
MlstmRecurrentOutput mlstm_recurrent(const MlstmInputs& x, MlstmState& state, const MlstmSettings& settings);

// The parts of the chunkwise passes. vecB [B, NH, NC, L] holds sums of log forget gates within each chunk,
// vecI [B, NH, NC, L] input gates: S is a multiple of L. log_f [B, NH, S] is the log forget gate of each
// token.
// Defined tensors of `buffers` receive the states.
MlstmState mlstm_recurrent_fw_c(const Tensor& k, const Tensor& v, const Tensor& vec_b, const Tensor& vec_i,
                                const MlstmState& initial, const MlstmState& buffers,
                                const MlstmSettings& settings);
MlstmOutput mlstm_parallel_fw_h(const Tensor& q, const Tensor& k, const Tensor& v, const MlstmState& states,
                                const Tensor& vec_i, const Tensor& vec_b, const MlstmSettings& settings);
// Gradients of the states after chunks 1..NC, dc [B, NH, NC DHQK, DHHV] and dn [B, NH, NC DHQK], and of the
// initial state. `exact` holds h and nt of the forward pass and perhaps dn_last; without h the mode is approx
// and dn zero.
struct MlstmStateGradients {
  Tensor dc, dn;
  MlstmState initial;
};
struct MlstmDenominatorPath {
  Tensor h = {}, nt = {}, dn_last = {};
};
MlstmStateGradients mlstm_recurrent_bw_dc(const Tensor& q, const Tensor& log_f, const Tensor& m_states,
                                          const Tensor& m_out, const Tensor& dh, const Tensor& n_out,
                                          const Tensor& dc_last, const MlstmDenominatorPath& exact,
                                          const MlstmSettings& settings);
// dq, dk, dv, di, and df: the gradient of log_f. states.c has NC or NC + 1 blocks, after.dc NC. The mode is
// exact where after.dn is given, with states.n.
MlstmGradients mlstm_parallel_bw_dqkv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_f,
                                      const Tensor& vec_i, const MlstmState& states, const Tensor& dh,
                                      const Tensor& n_out, const Tensor& m_out,
                                      const MlstmStateGradients& after, const MlstmSettings& settings);

}  // namespace trivium::ops
