// Gradients of one run of at most kMlstmChunk tokens of one head. Included by mlstm_level.h.
//
//   G_l = dh_l / (den_l + eps)                D_lj, P_lj, into, out_of as in mlstm_chunk.h
//   e_l = -sign(nt_l) [|nt_l| >= exp(-m_l)] dh_l . h_l / (den_l + eps)     the denominator's path; 0 when not
//   exact dS  = (G V^T + e 1^T) * D                 R = dS * scale Q K^T dQ  = scale dS K  + scale diag(into)
//   (G C^T + e n^T) dK  = scale dS^T Q + diag(out_of) (V dC^T + 1 dn^T) dV  = P^T G + diag(out_of) K dC dC' =
//   keep dC + (scale diag(into) Q)^T G,  dn' = keep dn + (scale diag(into) Q)^T e dlf_t = sum_{r>=t} q_r .
//   dQ_past_r + sum_{r<t} k_r . dK_future_r + keep (<C, dC> + n . dn)
//           + sum_{r>=t, j<t} R_rj           dli_j = k_j . dK_future_j + sum_r R_rj
//
// C, n: state before the run; dC, dn: gradient of the state after it. dh . h needs no h: dh_l . h_l =
// sum_j P_lj (G_l . v_j) + scale into_l q_l . (C G_l). Matrices of token pairs are kept as [j][l], gradients
// of queries and keys as [d][l] panels, so that every product reads panels.
#pragma once

#include "cpu/mlstm_chunk.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// kMlstmChunk floats for each token pair, row j; and the work arrays of one head.
struct BackwardScratch {
  float *q, *k, *v, *g;      // rows, pitch row_pitch(dqk or dv); g holds G
  float *qt, *kt, *vt, *gt;  // transposed panels [2 or more][dqk or dv][kPanel]
  float* g_panels;           // [num_panels(dv)][kMlstmChunk][kPanel]
  float* queries;            // rows scale into_l q_l
  float *dqt, *dkt;          // [..][dqk][kPanel]
  float *pt, *dpt, *ds,
      *dst;  // P^T, dP^T as rows; scale dS in panels of l rows, scale dS^T in panels of j rows
  float* row;
  static BackwardScratch take(Pieces& p, int64_t dqk, int64_t dv) {
    BackwardScratch s;
    const int64_t keys = kMlstmChunk * row_pitch(dqk), values = kMlstmChunk * row_pitch(dv);
    s.q = p.take(keys), s.k = p.take(keys), s.queries = p.take(keys);
    s.v = p.take(values), s.g = p.take(values);
    s.qt = p.take(kMlstmChunk * dqk), s.kt = p.take(kMlstmChunk * dqk);
    s.vt = p.take(kMlstmChunk * dv), s.gt = p.take(kMlstmChunk * dv);
    s.g_panels = p.take(kMlstmChunk * panel_columns(dv));
    s.dqt = p.take(kMlstmChunk * dqk), s.dkt = p.take(kMlstmChunk * dqk);
    for (float** x : {&s.pt, &s.dpt, &s.ds, &s.dst}) *x = p.take(kMlstmChunk * kMlstmChunk);
    s.row = p.take(panel_columns(dqk > dv ? dqk : dv));
    return s;
  }
};

// What the outputs of a run get from outside, and the gate gradients that leave it; [kMlstmChunk] each.
struct ChunkGradients {
  float den[kMlstmChunk], nt[kMlstmChunk];
  alignas(64) float e[kMlstmChunk], dli[kMlstmChunk], dlf[kMlstmChunk];
  bool exact, has_nt;
};

// panels[(n / kPanel)][d][kPanel] = sum_k a(d, k) bt(k, n) with a in panels of k: the products C G^T and dC
// V^T.
inline void multiply_transposed(const float* a, const float* bt, int64_t dqk, int64_t depth, int64_t count,
                                float* out) {
  for (int64_t n = 0; n < count; n += kPanel)
    for_row_tiles(dqk, [&]<int kRows>(int64_t d) {
      TileAcc<kRows> acc;
      acc.clear();
      acc.add_panels(a + d * kPanel, dqk * kPanel, bt + n * depth, depth);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.store_row(i, out + n * dqk + (d + i) * kPanel);
    });
}

// rows[j][l] = a_j . b_l for l >= j (and some l < j): a rows, b transposed panels.
inline void multiply_pairs(const float* a, int64_t pitch, const float* bt, int64_t depth, int64_t count,
                           float* rows) {
  for_row_tiles(count, [&]<int kRows>(int64_t j) {
    for (int64_t n = j / kPanel * kPanel; n < count; n += kPanel) {
      TileAcc<kRows> acc;
      acc.clear();
      acc.add_product(a + j * pitch, pitch, 1, bt + n * depth, depth);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.store_row(i, rows + (j + i) * kMlstmChunk + n);
    }
  });
}

// out[n] = sum_d x[d][n] y[d][n] over panels of count columns.
inline void dot_columns(const float* x, const float* y, int64_t dqk, int64_t count, float* out) {
  for (int64_t n = 0; n < count; n += kPanel) {
    F32 sum[2] = {zero(), zero()};
    for (int64_t d = 0; d < dqk; ++d)
      for (int i = 0; i < 2; ++i) {
        const int64_t at = n * dqk + d * kPanel + i * kLanes;
        sum[i] = fma(load(x + at), load(y + at), sum[i]);
      }
    store(out + n, sum[0]);
    store(out + n + kLanes, sum[1]);
  }
}

// Turns s.pt (scores) and s.dpt (G V^T) into P^T, dS and R; fills g.e and the pair terms of the gates.
inline void pair_gradients(const MlstmOptions& o, const ChunkGates& g, const float* past_dot,
                           const float* past_nt, BackwardScratch& s, ChunkGradients& out) {
  const int64_t count = g.count;
  alignas(64) float decay[kMlstmChunk], num[kMlstmChunk], nt[kMlstmChunk], weights[kMlstmChunk * kMlstmChunk];
  for (int64_t l = 0; l < count; ++l)
    num[l] = o.scale * g.into[l] * past_dot[l], nt[l] = o.scale * g.into[l] * past_nt[l];
  for (int64_t j = 0; j < count; ++j) {
    float sum = 0;
    float *p = s.pt + j * kMlstmChunk, *w = weights + j * kMlstmChunk;
    const float* dp = s.dpt + j * kMlstmChunk;
    for (int64_t l = j; l < count; ++l)
      decay[l] = sum + (g.li[j] - finite_m(g.m[l])), sum += l + 1 < count ? g.lf[l + 1] : 0;
    for (int64_t l = j; l < count; l += kLanes) {
      const int n = count - l < kLanes ? static_cast<int>(count - l) : kLanes;
      store_as(w + l, exp_decay(n == kLanes ? load(decay + l) : load(decay + l, n)), n);
    }
    for (int64_t l = 0; l < j; ++l) p[l] = w[l] = 0;
    for (int64_t l = j; l < count; ++l) {
      p[l] *= o.scale * w[l];
      num[l] += p[l] * dp[l];
      nt[l] += p[l];
    }
  }
  for (int64_t l = 0; l < count; ++l) {
    const float signed_nt = out.has_nt ? out.nt[l] : nt[l];
    const bool active = out.exact && o.normalize && __builtin_fabsf(signed_nt) >= __builtin_expf(-g.m[l]);
    out.e[l] = active ? (signed_nt > 0 ? -1.0f : 1.0f) * num[l] / (out.den[l] + o.eps) : 0.0f;
  }
  alignas(64) float crossing[kMlstmChunk + 1] = {};  // sum_{r>=t, j<t} R_rj
  for (int64_t j = 0; j < count; ++j) {
    const float *p = s.pt + j * kMlstmChunk, *dp = s.dpt + j * kMlstmChunk, *w = weights + j * kMlstmChunk;
    float* panel = s.dst + j * kPanel;  // element (j, l) at [l / kPanel][j][l % kPanel]
    float suffix = 0;
    for (int64_t l = count; l-- > 0;) {
      const float d = l >= j ? dp[l] + out.e[l] : 0.0f;
      panel[l / kPanel * kMlstmChunk * kPanel + l % kPanel] = l >= j ? o.scale * d * w[l] : 0.0f;
      if (l < j) continue;
      suffix += d * p[l];
      if (l > j) crossing[l] += suffix;
    }
    out.dli[j] = suffix;
  }
  for (int64_t t = 0; t < count; ++t) out.dlf[t] = crossing[t];
  for (int64_t j = 0; j < count; ++j)  // element (l, j) at [j / kPanel][l][j % kPanel]
    for (int64_t l = 0; l < count; ++l)
      s.ds[(j / kPanel * kMlstmChunk + l) * kPanel + j % kPanel] =
          s.dst[(l / kPanel * kMlstmChunk + j) * kPanel + l % kPanel];
}

struct Terms {
  int64_t begin, end;
};

// out (panels [..][dqk][kPanel], columns n) += sum_k rows(k, d) pairs(k, n); k runs over [from(n), to(n)).
template <class Range>
void add_pair_product(const float* rows, int64_t pitch, const float* pairs, int64_t dqk, int64_t count,
                      Range&& range, float* out) {
  for (int64_t n = 0; n < count; n += kPanel) {
    const Terms terms = range(n);
    const int64_t begin = terms.begin, end = terms.end;
    for_row_tiles(dqk, [&]<int kRows>(int64_t d) {
      TileAcc<kRows> acc;
      float* at = out + n * dqk + d * kPanel;
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.load_row(i, at + i * kPanel);
      acc.add_product(rows + begin * pitch + d, 1, pitch, pairs + (n / kPanel * kMlstmChunk + begin) * kPanel,
                      end - begin);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.store_row(i, at + i * kPanel);
    });
  }
}

// panels[n][d] = by[n] * (panels[n][d] + add[d] * times[n]).
inline void scale_columns(float* panels, int64_t dqk, int64_t count, const float* by, const float* add,
                          const float* times) {
  for (int64_t n = 0; n < count; n += kLanes) {
    const int valid = count - n < kLanes ? static_cast<int>(count - n) : kLanes;
    const F32 factor = load(by + n, valid), other = load(times + n, valid);
    float* at = panels + n / kPanel * kPanel * dqk + n % kPanel;
    for (int64_t d = 0; d < dqk; ++d)
      store(at + d * kPanel, mul(factor, fma(set1(add[d]), other, load(at + d * kPanel))));
  }
}

// Rows [0, count) of a [dqk] gradient from its transposed panels.
template <class T>
void store_transposed(const float* panels, int64_t dqk, int64_t count, float* row, T* to) {
  for (int64_t l = 0; l < count; ++l) {
    const float* from = panels + l / kPanel * kPanel * dqk + l % kPanel;
    T* out = to + l * dqk;
    for (int64_t d = 0; d < dqk; ++d) row[d] = from[d * kPanel];
    for (int64_t d = 0; d < dqk; d += kLanes)
      store_as(out + d, load(row + d), dqk - d < kLanes ? static_cast<int>(dqk - d) : kLanes);
  }
}

// dV of the run: P^T G + diag(out_of) K dC.
template <class T>
void value_gradients(const ChunkGates& g, const BackwardScratch& s, int64_t dqk, int64_t dv, const float* dc,
                     bool no_dc, T* to) {
  for (int64_t panel = 0; panel < num_panels(dv); ++panel) {
    const float* rows = s.g_panels + panel * kMlstmChunk * kPanel;
    const int columns = static_cast<int>(dv - panel * kPanel < kPanel ? dv - panel * kPanel : kPanel);
    for_row_tiles(g.count, [&]<int kRows>(int64_t j) {
      TileAcc<kRows> acc;
      acc.clear();
      if (!no_dc) {
        acc.add_product(s.k + j * row_pitch(dqk), row_pitch(dqk), 1, dc + panel * dqk * kPanel, dqk);
#pragma GCC unroll kMlstmUnroll
        for (int i = 0; i < kRows; ++i) acc.scale(i, g.out_of[j + i]);
      }
      acc.add_product(s.pt + j * kMlstmChunk + j, kMlstmChunk, 1, rows + j * kPanel, g.count - j);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) {
        T* out = to + (j + i) * dv + panel * kPanel;
        store_as(out, acc.x[i][0], columns);
        if (columns > kLanes) store_as(out + kLanes, acc.x[i][1], columns - kLanes);
      }
    });
  }
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
