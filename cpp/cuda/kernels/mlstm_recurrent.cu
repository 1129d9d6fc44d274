// The mLSTM token by token, its state updated in place. A first kernel owns n and m and leaves the factors of
// every token, so that the blocks of a head's columns read nothing another block writes.
#include "cuda/mlstm.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kThreads = 128;

// One block a head. workspace[3 t] = f', i', scale / (den + eps).
template <class T>
GPU_KERNEL(kThreads)
void factors_kernel(MlstmRecurrentArgs a) {
  const int64_t head = blockIdx.x, b = head / a.size.heads, h = head % a.size.heads, dqk = a.size.dqk;
  float* n = a.n + head * dqk;
  float m = a.m[head];
  for (int64_t t = 0; t < a.size.tokens; ++t) {
    const int64_t gate = head * a.size.tokens + t;
    const T* q = as<T>(a.q) + b * a.qs.batch + h * a.qs.head + t * a.qs.token;
    const T* k = as<T>(a.k) + b * a.ks.batch + h * a.ks.head + t * a.ks.token;
    const float past = a.lf[gate] + m, after = a.options.sigmoid_input ? 0.0f : max(past, a.li[gate]);
    const float forget = exp(exponent_of(a.lf[gate], m, finite_m(after)));
    const float input = exp(a.li[gate] - finite_m(after));
    m = after;
    float dot = 0;
    for (int64_t d = threadIdx.x; d < dqk; d += kThreads) {
      const float updated = forget * n[d] + input * to_float(k[d]);
      n[d] = updated;
      dot = fma(to_float(q[d]), updated, dot);
    }
    const float nt = a.options.scale * block_sum(dot);
    float den = a.options.normalize ? max(abs(nt), exp(-m)) : 1.0f;
    if (isnan(nt)) den = nt;
    if (threadIdx.x == 0) {
      float* f = a.workspace + 3 * gate;
      f[0] = forget;
      f[1] = input;
      f[2] = a.options.scale * (a.options.normalize ? 1.0f / (den + a.options.eps) : 1.0f);
      if (a.den) a.den[gate] = den;
      if (a.m_out) a.m_out[gate] = m;
    }
  }
  if (threadIdx.x == 0) a.m[head] = m;
}

// A thread owns a column of C.
template <class T, class C>
GPU_KERNEL(kThreads)
void columns_kernel(MlstmRecurrentArgs a) {
  GPU_SHARED(float, keys, kThreads);
  GPU_SHARED(float, queries, kThreads);
  const int64_t head = blockIdx.x, b = head / a.size.heads, h = head % a.size.heads;
  const int64_t dqk = a.size.dqk, dv = a.size.dv;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const bool mine = column < dv;
  C* c = as<C>(a.c) + head * dqk * dv + column;
  for (int64_t t = 0; t < a.size.tokens; ++t) {
    const T* q = as<T>(a.q) + b * a.qs.batch + h * a.qs.head + t * a.qs.token;
    const T* k = as<T>(a.k) + b * a.ks.batch + h * a.ks.head + t * a.ks.token;
    const T* v = as<T>(a.v) + b * a.vs.batch + h * a.vs.head + t * a.vs.token;
    const float* f = a.workspace + 3 * (head * a.size.tokens + t);
    const float forget = f[0], value = mine ? f[1] * to_float(v[column]) : 0.0f;
    float sum = 0;
    for (int64_t d0 = 0; d0 < dqk; d0 += kThreads) {
      const int64_t d = d0 + threadIdx.x;
      sync_block();  // the keys before have been read
      keys[threadIdx.x] = d < dqk ? to_float(k[d]) : 0.0f;
      queries[threadIdx.x] = d < dqk ? to_float(q[d]) : 0.0f;
      sync_block();
      for (int i = 0; mine && i < kThreads && d0 + i < dqk; ++i) {
        C* place = c + (d0 + i) * dv;
        const float updated = fma(keys[i], value, forget * to_float(*place));
        *place = from_float<C>(updated);
        sum = fma(queries[i], updated, sum);
      }
    }
    if (mine)
      as<T>(a.h)[b * a.hs.batch + h * a.hs.head + t * a.hs.token + column] = from_float<T>(sum * f[2]);
  }
}

}  // namespace

void mlstm_recurrent(Stream stream, const MlstmRecurrentArgs& a) {
  const int64_t heads = a.size.batch * a.size.heads;
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_recurrent", [&]<class T>() {
    launch(stream, {.grid = {heads}, .block = kThreads}, factors_kernel<T>, a);
    dispatch_dtype<float, bf16>(a.c_dtype, "mlstm_recurrent", [&]<class C>() {
      launch(stream, {.grid = {heads, ceil_div(a.size.dv, kThreads)}, .block = kThreads},
             columns_kernel<T, C>, a);
    });
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
