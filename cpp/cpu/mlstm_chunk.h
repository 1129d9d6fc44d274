// One run of at most kMlstmChunk tokens of one head: gates, outputs from the state before it, and the state
// after it (chunkwise form of the mLSTM; Beck et al. 2024). Included by mlstm_level.h.
//
//   b_l = sum_{r<=l} lf_r     a_l = li_l + sum_{r>l} lf_r     d_lj = li_j + sum_{j<r<=l} lf_r  (j <= l)
//   m_l = max(b_l + m, max_j d_lj, floor)      P_lj = scale q_l . k_j exp(d_lj - m_l)
//   num_l = scale exp(b_l + m - m_l) C^T q_l + sum_j P_lj v_j        nt_l likewise from n and 1
//
// Sums of log gates are sums of numbers of one sign; none is formed as a difference.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/mlstm_tile.h"
#include "ops/mlstm_args.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

inline constexpr int64_t kMlstmChunk =
    64;  // two panels; keeps keys, values and scores in the first-level cache

// What an exponent subtracts: an empty state has m = -infinity, and nothing to scale.
TRIVIUM_INLINE float finite_m(float m) { return m == -INFINITY ? 0.0f : m; }

// Gate quantities of the first `count` tokens of a chunk.
struct ChunkGates {
  float lf[kMlstmChunk], li[kMlstmChunk];
  float m[kMlstmChunk];           // m_l
  float into[kMlstmChunk];        // exp(b_l + m_before - m_l)
  float out_of[kMlstmChunk];      // exp(a_l - m_after)
  float keep, m_before, m_after;  // keep = exp(g + m_before - m_after)
  int64_t count;

  // m_l of tokens [0, count); with `given`, they are read from there.
  void outputs(int64_t n, float m0, const MlstmOptions& o, const float* given = nullptr) {
    count = n, m_before = m0;
    double sum = 0;  // a large m must not eat the digits of small differences
    float largest = -INFINITY;
    for (int64_t l = 0; l < count; ++l) {
      sum += static_cast<double>(lf[l]);
      largest = l == 0 ? li[0] : __builtin_fmaxf(lf[l] + largest, li[l]);
      const float past = static_cast<float>(sum + static_cast<double>(m0));
      m[l] = o.sigmoid_input ? 0.0f
             : given         ? given[l]
                             : __builtin_fmaxf(__builtin_fmaxf(past, largest), o.m_floor);
      into[l] = static_cast<float>(sum + static_cast<double>(m0) - static_cast<double>(finite_m(m[l])));
    }
    exp_all(into);
  }
  // Weights of the tokens in the state after them, whose m is max(g + m0, max_l a_l) unless given.
  void state(int64_t n, float m0, const MlstmOptions& o, const float* given = nullptr) {
    count = n, m_before = m0;
    double after = 0, sums[kMlstmChunk];
    float largest = -INFINITY;
    for (int64_t l = count; l-- > 0;) {
      sums[l] = after + static_cast<double>(li[l]);
      largest = __builtin_fmaxf(largest, static_cast<float>(sums[l]));
      after += static_cast<double>(lf[l]);
    }
    const double whole = after + static_cast<double>(m0);
    m_after = o.sigmoid_input ? 0.0f : given ? *given : __builtin_fmaxf(static_cast<float>(whole), largest);
    for (int64_t l = 0; l < count; ++l)
      out_of[l] = static_cast<float>(sums[l] - static_cast<double>(finite_m(m_after)));
    exp_all(out_of);
    float value[kLanes];
    store(value, exp_decay(set1(static_cast<float>(whole - static_cast<double>(finite_m(m_after))))));
    keep = value[0];
  }

 private:
  void exp_all(float* x) const {
    for (int64_t l = 0; l < count; l += kLanes) {
      const int n = count - l < kLanes ? static_cast<int>(count - l) : kLanes;
      store_as(x + l, exp_decay(load_first(x + l, n)), n);
    }
  }
  TRIVIUM_INLINE static F32 load_first(const float* p, int n) { return n == kLanes ? load(p) : load(p, n); }
};

// Panels p0 to p1 of the values' columns; the first run of panels also writes what is not per column.
struct PanelRange {
  int64_t begin, end;
  bool owner;
};

// State of one head: c in panels [num_panels(dv)][dqk][kPanel], n [dqk].
struct HeadState {
  float *c, *n;
  float m;
  bool zero;  // c and n count as zero and hold nothing
};

// Tokens of a chunk: keys transposed [kMlstmChunk / kPanel][dqk][kPanel], values in panels
// [num_panels(dv)][kMlstmChunk][kPanel].
struct ChunkTokens {
  float *keys, *values;
};

struct ForwardScratch {
  float *q, *row, *p, *scaled;
  ChunkTokens tokens;
  static ForwardScratch take(Pieces& pieces, int64_t dqk, int64_t dv) {
    ForwardScratch s;
    s.q = pieces.take(kMlstmChunk * (dqk + 16));
    s.row = pieces.take(kMlstmChunk * panel_columns(dqk > dv ? dqk : dv));
    s.p = pieces.take(kMlstmChunk * kMlstmChunk);
    s.scaled = pieces.take(kMlstmChunk * kPanel);
    s.tokens = {pieces.take(kMlstmChunk * dqk), pieces.take(kMlstmChunk * panel_columns(dv))};
    return s;
  }
};

// Rows of q are this far apart in scratch: not a power of two, whose rows would share cache sets.
TRIVIUM_INLINE int64_t row_pitch(int64_t columns) { return columns + 16; }

// Appends rows [first, last) of the chunk; k and v point at the chunk's row 0.
template <class T>
void put_tokens(const T* k, int64_t k_stride, const T* v, int64_t v_stride, int64_t first, int64_t last,
                int64_t dqk, int64_t dv, PanelRange range, float* row, ChunkTokens to) {
  if constexpr (std::is_same_v<T, float>) {
    put_transposed(k, k_stride, dqk, first, last, to.keys);
  } else {
    for (int64_t l = first; l < last; ++l) copy_row(k + l * k_stride, dqk, row + l * dqk, dqk);
    put_transposed(row, dqk, dqk, first, last, to.keys);
  }
  const int64_t c0 = range.begin * kPanel, c1 = range.end * kPanel < dv ? range.end * kPanel : dv;
  for (int64_t l = first; l < last; ++l) {
    copy_row(v + l * v_stride + c0, c1 - c0, row, (range.end - range.begin) * kPanel);
    put_row(row, c1 - c0, l, kMlstmChunk, to.values + range.begin * kMlstmChunk * kPanel);
  }
}

// The last rows of a product with a lower triangle: row r takes the terms k <= r of its own tile.
template <int kRows>
TRIVIUM_INLINE void add_triangle(TileAcc<kRows>& acc, const float* a, int64_t row, const float* b) {
#pragma GCC unroll kMlstmUnroll
  for (int k = 0; k < kRows; ++k) {
    const F32 b0 = load(b + k * kPanel), b1 = load(b + k * kPanel + kLanes);
#pragma GCC unroll kMlstmUnroll
    for (int r = k; r < kRows; ++r) {
      const F32 value = set1(a[r * row + k]);
      acc.x[r][0] = fma(value, b0, acc.x[r][0]);
      acc.x[r][1] = fma(value, b1, acc.x[r][1]);
    }
  }
}

// p[l][j] = scale q_l . k_j exp(d_lj - m_l) for rows [first, last), zero beyond j = l; sums[l] = sum_j
// p[l][j].
inline void weigh_tokens(const float* q, int64_t pitch, const float* keys, int64_t dqk, const ChunkGates& g,
                         float scale, int64_t first, int64_t last, float* p, float* sums) {
  for_row_tiles(last - first, [&]<int kRows>(int64_t r) {
    const int64_t l = first + r;
    for (int64_t j = 0; j < l + kRows; j += kPanel) {
      TileAcc<kRows> acc;
      acc.clear();
      acc.add_product(q + r * pitch, pitch, 1, keys + j * dqk, dqk);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.store_row(i, p + (l + i) * kMlstmChunk + j);
    }
  });
  alignas(64) float decay[kMlstmChunk] = {};  // sum_{j<r<=l} lf_r
  for (int64_t l = 0; l < last; ++l) {
    for (int64_t j = 0; j < l; ++j) decay[j] += g.lf[l];
    if (l < first) continue;
    float* row = p + l * kMlstmChunk;
    const F32 m = set1(finite_m(g.m[l]));
    F32 sum = zero();
    for (int64_t j = 0; j <= l; j += kLanes) {
      const int n = l + 1 - j < kLanes ? static_cast<int>(l + 1 - j) : kLanes;
      const F32 weight = exp_decay(add(load(decay + j), sub(load(g.li + j, n), m)));
      const F32 product = mul(mul(load(row + j, n), set1(scale)), weight);
      store_as(row + j, product, n);
      sum = add(sum, load(row + j, n));
    }
    sums[l] = reduce_add(sum);
  }
}

// Rows [first, last) of h, den, nt and m; the pointers are to row `first` (den, nt, m may be null).
struct OutputRows {
  void* h;
  int64_t stride;
  float *den, *nt, *m;
};

template <class T>
void chunk_outputs(const MlstmOptions& o, int64_t dqk, int64_t dv, const HeadState& state,
                   const ChunkGates& g, const ForwardScratch& s, int64_t first, int64_t last,
                   PanelRange range, OutputRows out) {
  float sums[kMlstmChunk], inverse[kMlstmChunk];
  const int64_t pitch = row_pitch(dqk);
  weigh_tokens(s.q, pitch, s.tokens.keys, dqk, g, o.scale, first, last, s.p, sums);
  for (int64_t l = first; l < last; ++l) {
    const float past = state.zero ? 0.0f : dot_floats(s.q + (l - first) * pitch, state.n, dqk);
    const float nt = sums[l] + o.scale * g.into[l] * past;
    const float den = o.normalize ? __builtin_fmaxf(__builtin_fabsf(nt), __builtin_expf(-g.m[l])) : 1.0f;
    inverse[l] = o.normalize ? 1.0f / (__builtin_isnan(nt) ? nt : den + o.eps) : 1.0f;
    if (!range.owner) continue;
    if (out.den) out.den[l - first] = __builtin_isnan(nt) ? nt : den;
    if (out.nt) out.nt[l - first] = nt;
    if (out.m) out.m[l - first] = g.m[l];
  }
  for (int64_t panel = range.begin; panel < range.end; ++panel) {
    const float* values = s.tokens.values + panel * kMlstmChunk * kPanel;
    const int columns = static_cast<int>(dv - panel * kPanel < kPanel ? dv - panel * kPanel : kPanel);
    for_row_tiles(last - first, [&]<int kRows>(int64_t r) {
      const int64_t l = first + r;
      TileAcc<kRows> acc;
      acc.clear();
      if (!state.zero) {
        acc.add_product(s.q + r * pitch, pitch, 1, state.c + panel * dqk * kPanel, dqk);
#pragma GCC unroll kMlstmUnroll
        for (int i = 0; i < kRows; ++i) acc.scale(i, o.scale * g.into[l + i]);
      }
      acc.add_product(s.p + l * kMlstmChunk, kMlstmChunk, 1, values, l);
      add_triangle(acc, s.p + l * kMlstmChunk + l, kMlstmChunk, values + l * kPanel);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) {
        T* h = static_cast<T*>(out.h) + (r + i) * out.stride + panel * kPanel;
        const F32 by = set1(inverse[l + i]);
        store_as(h, mul(acc.x[i][0], by), columns);
        if (columns > kLanes) store_as(h + kLanes, mul(acc.x[i][1], by), columns - kLanes);
      }
    });
  }
}

// to = keep * from + sum_l out_of_l k_l v_l^T over the chunk (g.state() was called); n likewise.
inline void advance_state(int64_t dqk, const ChunkGates& g, const ForwardScratch& s, PanelRange range,
                          const HeadState& from, HeadState& to) {
  alignas(64) float weights[kMlstmChunk] = {};
  for (int64_t l = 0; l < g.count; ++l) weights[l] = g.out_of[l];
  const F32 keep = set1(g.keep);
  for (int64_t panel = range.begin; panel < range.end; ++panel) {
    const float* values = s.tokens.values + panel * kMlstmChunk * kPanel;
    for (int64_t l = 0; l < g.count; ++l)
      for (int i = 0; i < kPanel; i += kLanes)
        store(s.scaled + l * kPanel + i, mul(load(values + l * kPanel + i), set1(weights[l])));
    for_row_tiles(dqk, [&]<int kRows>(int64_t d) {
      const int64_t at = (panel * dqk + d) * kPanel;
      TileAcc<kRows> acc;
      acc.clear();
      if (!from.zero) {
#pragma GCC unroll kMlstmUnroll
        for (int i = 0; i < kRows; ++i) {
          acc.load_row(i, from.c + at + i * kPanel);
          acc.x[i][0] = mul(acc.x[i][0], keep), acc.x[i][1] = mul(acc.x[i][1], keep);
        }
      }
      acc.add_panels(s.tokens.keys + d * kPanel, dqk * kPanel, s.scaled, g.count);
#pragma GCC unroll kMlstmUnroll
      for (int i = 0; i < kRows; ++i) acc.store_row(i, to.c + at + i * kPanel);
    });
  }
  for (int64_t d = 0; d < dqk; ++d) {
    F32 sum = zero();
    for (int64_t l = 0; l < g.count; l += kLanes) {
      const int n = g.count - l < kLanes ? static_cast<int>(g.count - l) : kLanes;
      const float* key = s.tokens.keys + (l / kPanel * dqk + d) * kPanel + l % kPanel;
      sum = fma(load(key, n), load(weights + l), sum);
    }
    to.n[d] = (from.zero ? 0.0f : g.keep * from.n[d]) + reduce_add(sum);
  }
  to.m = g.m_after;
  to.zero = false;
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
