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
      *dst;    // P^T, dP^T as rows; scale dS in panels of l rows, scale dS^T in panels of j rows
  float* row;  // four of them
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
    s.row = p.take(4 * panel_columns(dqk > dv ? dqk : dv));
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

// Columns of row j that vectors touch: from the vector of column j on, up to that of the last one.
struct PairColumns {
  int64_t first, end;
  PairColumns(int64_t j, int64_t count)
      : first(j / kLanes * kLanes), end((count + kLanes - 1) / kLanes * kLanes) {}
};
// What lies in them before column j and behind the last one.
inline void zero_outside(float* row, int64_t from, int64_t j, int64_t count, int64_t end) {
  for (int64_t l = from; l < j; ++l) row[l] = 0;
  for (int64_t l = count; l < end; ++l) row[l] = 0;
}

// weights[j][l] = D_lj: exp of the forget gates' sum over (j, l], plus li_j - m_l. The sums grow from their
// last term to the first, so none is a difference of larger ones.
inline void pair_weights(const ChunkGates& g, float* weights) {
  const int64_t count = g.count;
  alignas(64) float between[kMlstmChunk] = {}, m[kMlstmChunk] = {};
  for (int64_t l = 0; l < count; ++l) m[l] = finite_m(g.m[l]);
  for (int64_t j = count; j-- > 0;) {
    const PairColumns columns(j, count);
    float* w = weights + j * kMlstmChunk;
    if (j + 1 < count) {
      int64_t l = j + 1;
      for (; l % kLanes != 0; ++l) between[l] += g.lf[j + 1];
      for (; l < columns.end; l += kLanes) store(between + l, add(load(between + l), set1(g.lf[j + 1])));
    }
    for (int64_t l = columns.first; l < columns.end; l += kLanes)
      store(w + l, exp_decay(add(load(between + l), sub(set1(g.li[j]), load(m + l)))));
    zero_outside(w, columns.first, j, count, columns.end);
  }
}

// s.pt (scores) becomes P^T; num and nt grow by their pairs' parts of dh_l . h_l and nt_l.
inline void pair_sums(float scale, int64_t count, const float* weights, BackwardScratch& s, float* num,
                      float* nt) {
  for (int64_t j = 0; j < count; ++j) {
    const PairColumns columns(j, count);
    float *p = s.pt + j * kMlstmChunk, *dp = s.dpt + j * kMlstmChunk;
    zero_outside(p, columns.first, j, count, columns.end);
    zero_outside(dp, columns.first, j, count, columns.end);
    for (int64_t l = columns.first; l < columns.end; l += kLanes) {
      const F32 pair = mul(load(p + l), mul(set1(scale), load(weights + j * kMlstmChunk + l)));
      store(p + l, pair);
      store(num + l, fma(pair, load(dp + l), load(num + l)));
      store(nt + l, add(load(nt + l), pair));
    }
  }
}

// s.dpt (G V^T) becomes scale dS^T, in panels in s.dst too and transposed in s.ds; dli and dlf get the sums
// of R.
inline void score_gradients(float scale, int64_t count, const float* weights, BackwardScratch& s,
                            ChunkGradients& out) {
  // By column l: R of the keys before j, and e. What is before column j is no longer wanted and zero.
  alignas(64) float earlier[kMlstmChunk] = {}, e[kMlstmChunk];
  std::memcpy(e, out.e, sizeof e);
  for (int64_t j = 0; j < count; ++j) {
    const PairColumns columns(j, count);
    if (j > columns.first) earlier[j - 1] = e[j - 1] = 0;
    const float *p = s.pt + j * kMlstmChunk, *w = weights + j * kMlstmChunk;
    float *d = s.dpt + j * kMlstmChunk, *panels = s.dst + j * kPanel;
    const auto put = [&](int64_t l, F32 x) __attribute__((always_inline)) {
      store(d + l, x);
      store(panels + l / kPanel * kMlstmChunk * kPanel + l % kPanel, x);
    };
    for (int64_t l = j / kPanel * kPanel; l < columns.first; l += kLanes) put(l, zero());
    F32 crossing = zero(), own = zero();
    for (int64_t l = columns.first; l < columns.end; l += kLanes) {
      const F32 dp = add(load(d + l), load(e + l)), r = mul(dp, load(p + l)), before = load(earlier + l);
      crossing = add(crossing, before), own = add(own, r);
      store(earlier + l, add(before, r));
      put(l, mul(mul(set1(scale), dp), load(w + l)));
    }
    out.dlf[j] = reduce_add(crossing);  // sum_{r >= j, i < j} R_ri
    out.dli[j] = reduce_add(own);
  }
  put_transposed(s.dpt, kMlstmChunk, kMlstmChunk, 0, count, s.ds);
}

// Turns s.pt (scores) and s.dpt (G V^T) into P^T and dS; fills g.e and the pair terms of the gates.
inline void pair_gradients(const MlstmOptions& o, const ChunkGates& g, const float* past_dot,
                           const float* past_nt, BackwardScratch& s, ChunkGradients& out) {
  const int64_t count = g.count;
  alignas(64) float num[kMlstmChunk] = {}, nt[kMlstmChunk] = {}, weights[kMlstmChunk * kMlstmChunk];
  for (int64_t l = 0; l < count; ++l)
    num[l] = o.scale * g.into[l] * past_dot[l], nt[l] = o.scale * g.into[l] * past_nt[l];
  pair_weights(g, weights);
  pair_sums(o.scale, count, weights, s, num, nt);
  for (int64_t l = 0; l < count; ++l) {
    const float signed_nt = out.has_nt ? out.nt[l] : nt[l];
    const bool active = out.exact && o.normalize && __builtin_fabsf(signed_nt) >= __builtin_expf(-g.m[l]);
    out.e[l] = active ? (signed_nt > 0 ? -1.0f : 1.0f) * num[l] / (out.den[l] + o.eps) : 0.0f;
  }
  score_gradients(o.scale, count, weights, s, out);
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

// Rows [0, count) of a [dqk] gradient from its transposed panels, four at a time through `rows`.
template <class T>
void store_transposed(const float* panels, int64_t dqk, int64_t count, float* rows, T* to) {
  const int64_t pitch = panel_columns(dqk);
  for (int64_t l = 0; l < count; l += 4) {
    const float* from = panels + l / kPanel * kPanel * dqk + l % kPanel;
    int64_t d = 0;
    for (; d + 4 <= dqk; d += 4) transpose_four(from + d * kPanel, kPanel, rows + d, pitch);
    for (; d < dqk; ++d)
      for (int64_t i = 0; i < 4; ++i) rows[i * pitch + d] = from[d * kPanel + i];
    for (int64_t i = 0; i < 4 && l + i < count; ++i)
      for (d = 0; d < dqk; d += kLanes)
        store_as(to + (l + i) * dqk + d, load(rows + i * pitch + d),
                 dqk - d < kLanes ? static_cast<int>(dqk - d) : kLanes);
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
