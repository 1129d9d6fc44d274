// Work memory and places of the mLSTM's backward kernels. Formulas as in cpu/mlstm_backward_chunk.h.
#pragma once

#include "cuda/mlstm.cuh"

namespace trivium::TRIVIUM_GPU_NS {

struct BackwardWork {
  GateSums sums;
  float *p, *dp, *w;  // [B NH S, chunk]: P_lj, G_l . v_j and D_lj of token l and token j <= l of its chunk
  float *cg, *vd;     // [B NH S, DQ]: C G_l and dC v_j
  float *e, *x, *y;   // [B NH S]: the denominator's path, q . dQ_past, k . dK_future
  float* kept;        // [B NH, NC]: keep (<C, dC> + n . dn)

  static BackwardWork at(float* memory, const MlstmSizes& s) {
    const int64_t tokens = s.batch * s.heads * s.tokens, pairs = tokens * s.chunk, vectors = tokens * s.dqk;
    BackwardWork k;
    k.sums = GateSums::at(memory, s);
    memory += mlstm_forward_workspace(s);
    k.p = memory, k.dp = k.p + pairs, k.w = k.dp + pairs;
    k.cg = k.w + pairs, k.vd = k.cg + vectors;
    k.e = k.vd + vectors, k.x = k.e + tokens, k.y = k.x + tokens;
    k.kept = k.y + tokens;
    return k;
  }
};

// Where a chunk's states and their gradients lie.
struct ChunkStates {
  const float *c, *n, *dc, *dn;  // before the chunk; gradients of those after it; n and dn may be null: zeros
  float before, after;           // m
  GPU_DEVICE ChunkStates(const MlstmBackwardArgs& a, const ChunkPlace& at) {
    const int64_t chunks = a.size.num_chunks(), matrix = a.size.dqk * a.size.dv;
    const int64_t slot = at.head * a.c_slots + at.chunk;
    const int64_t next = at.head * (chunks + 1 - a.dc_first) + at.chunk + 1 - a.dc_first;
    c = a.c_states ? a.c_states + slot * matrix : nullptr;
    n = a.n_states && a.exact ? a.n_states + slot * a.size.dqk : nullptr;
    dc = a.dc_states + next * matrix;
    dn = a.dn_states && a.exact ? a.dn_states + next * a.size.dqk : nullptr;
    before = a.m_states[at.head * (chunks + 1) + at.chunk];
    after = a.m_states[at.head * (chunks + 1) + at.chunk + 1];
  }
};

// scale exp(b_l + m_before - m_l) of token l of the chunk that starts at `tokens`.
GPU_DEVICE float query_factor(const MlstmBackwardArgs& a, const GateSums& sums, int64_t token, float before) {
  return a.options.scale * decay(exponent_of(sums.b[token], before, finite_m(a.m[token])));
}
GPU_DEVICE float output_factor(const MlstmBackwardArgs& a, int64_t token) {
  return a.options.normalize ? 1.0f / (a.den[token] + a.options.eps) : 1.0f;
}

// mlstm_backward_gates.cu: e and x; e from h; y, di and df; dm0.
void mlstm_backward_rows(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work);
void mlstm_backward_denominators(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work);
void mlstm_backward_gates(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work);
void mlstm_backward_initial(Stream stream, const MlstmBackwardArgs& a);

}  // namespace trivium::TRIVIUM_GPU_NS
