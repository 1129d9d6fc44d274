// The mLSTM token by token on one CPU level, its state updated in place. Included by mlstm_level.h.
#pragma once

#include <vector>

#include "core/parallel.h"
#include "cpu/mlstm_forward.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

struct StepFactors {
  float forget, input;  // f', i'
  float inverse;        // 1 / (den + eps), or 1
};

// The gates of one head over all tokens; updates n and m.
template <class T>
void recurrent_gates(const MlstmRecurrentArgs& a, const HeadPlace& at, StepFactors* factors) {
  const int64_t dqk = a.size.dqk;
  float *n = a.n + at.index * dqk, m = a.m[at.index];
  auto* row = static_cast<float*>(thread_scratch(2 * dqk * static_cast<int64_t>(sizeof(float))));
  for (int64_t t = 0; t < a.size.tokens; ++t) {
    const int64_t gate = at.index * a.size.tokens + t;
    const float after = a.options.sigmoid_input ? 0.0f : __builtin_fmaxf(a.lf[gate] + m, a.li[gate]);
    StepFactors& f = factors[t];
    // In double, so that what m lost to rounding is not lost to the state.
    const double past = static_cast<double>(a.lf[gate]) + static_cast<double>(m);
    f.forget = __builtin_expf(static_cast<float>(past - static_cast<double>(finite_m(after))));
    f.input = __builtin_expf(a.li[gate] - finite_m(after));
    m = after;
    copy_row(static_cast<const T*>(a.k) + at.at(a.ks) + t * a.ks.token, dqk, row, dqk);
    copy_row(static_cast<const T*>(a.q) + at.at(a.qs) + t * a.qs.token, dqk, row + dqk, dqk);
    for (int64_t d = 0; d < dqk; ++d) n[d] = f.forget * n[d] + f.input * row[d];
    double sum = 0;  // its terms may cancel
    for (int64_t d = 0; d < dqk; ++d) sum += double{row[dqk + d]} * double{n[d]};
    const auto nt = static_cast<float>(double{a.options.scale} * sum);
    float den = a.options.normalize ? __builtin_fmaxf(__builtin_fabsf(nt), __builtin_expf(-m)) : 1.0f;
    if (__builtin_isnan(nt)) den = nt;
    f.inverse = a.options.normalize ? 1.0f / (den + a.options.eps) : 1.0f;
    if (a.den) a.den[gate] = den;
    if (a.m_out) a.m_out[gate] = m;
  }
  a.m[at.index] = m;
}

// Columns [c0, c1) of one head's state and outputs.
template <class T, class C>
void recurrent_columns(const MlstmRecurrentArgs& a, const HeadPlace& at, const StepFactors* factors,
                       int64_t c0, int64_t c1) {
  const int64_t dqk = a.size.dqk, dv = a.size.dv, width = c1 - c0;
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  auto* memory =
      static_cast<float*>(thread_scratch((2 * dqk + 2 * padded) * static_cast<int64_t>(sizeof(float))));
  float *k = memory, *q = k + dqk, *v = q + dqk, *sum = v + padded;
  C* c = static_cast<C*>(a.c) + at.index * dqk * dv + c0;
  for (int64_t t = 0; t < a.size.tokens; ++t) {
    copy_row(static_cast<const T*>(a.k) + at.at(a.ks) + t * a.ks.token, dqk, k, dqk);
    copy_row(static_cast<const T*>(a.q) + at.at(a.qs) + t * a.qs.token, dqk, q, dqk);
    copy_row(static_cast<const T*>(a.v) + at.at(a.vs) + t * a.vs.token + c0, width, v, padded);
    for (int64_t i = 0; i < padded; i += kLanes) store(sum + i, zero());
    const F32 forget = set1(factors[t].forget);
    for (int64_t d = 0; d < dqk; ++d) {
      const F32 key = set1(factors[t].input * k[d]), query = set1(q[d]);
      for (int64_t i = 0; i < width; i += kLanes) {
        C* place = c + d * dv + i;
        const int n = width - i < kLanes ? static_cast<int>(width - i) : kLanes;
        const F32 old = n == kLanes ? load(place) : load(place, n);
        const F32 updated = fma(key, load(v + i), mul(forget, old));
        store_as(place, updated, n);
        store(sum + i, fma(query, updated, load(sum + i)));
      }
    }
    const F32 by = set1(a.options.scale * factors[t].inverse);
    T* h = static_cast<T*>(a.h) + at.at(a.hs) + t * a.hs.token + c0;
    for (int64_t i = 0; i < width; i += kLanes)
      store_as(h + i, mul(load(sum + i), by), width - i < kLanes ? static_cast<int>(width - i) : kLanes);
  }
}

template <class T>
void mlstm_recurrent_as(const MlstmRecurrentArgs& a) {
  const int64_t heads = a.size.batch * a.size.heads, threads = num_threads();
  std::vector<StepFactors> factors(static_cast<size_t>(heads * a.size.tokens));
  parallel_for(heads, [&](int64_t head, int) {
    recurrent_gates<T>(a, HeadPlace(a.size, head), factors.data() + head * a.size.tokens);
  });
  const int64_t blocks = (a.size.dv + 4 * kLanes - 1) / (4 * kLanes);
  const int64_t wanted = heads >= threads ? 1 : (threads + heads - 1) / heads;
  const int64_t runs = wanted < blocks ? wanted : blocks;
  parallel_for(heads * runs, [&](int64_t task, int) {
    const int64_t head = task / runs, run = task % runs;
    const int64_t c0 = blocks * run / runs * 4 * kLanes, end = blocks * (run + 1) / runs * 4 * kLanes;
    const int64_t c1 = end < a.size.dv ? end : a.size.dv;
    const StepFactors* own = factors.data() + head * a.size.tokens;
    if (a.c_dtype == Dtype::bf16)
      recurrent_columns<T, bf16>(a, HeadPlace(a.size, head), own, c0, c1);
    else
      recurrent_columns<T, float>(a, HeadPlace(a.size, head), own, c0, c1);
  });
}

inline void mlstm_recurrent(const MlstmRecurrentArgs& a) {
  if (a.size.batch * a.size.heads == 0) return;
  if (a.dtype == Dtype::f32)
    mlstm_recurrent_as<float>(a);
  else if (a.dtype == Dtype::bf16)
    mlstm_recurrent_as<bf16>(a);
  else
    mlstm_recurrent_as<f16>(a);
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
