// The sums over rows of the mLSTM's backward pass: the denominator's path and the gradients of the gates.
#include "cuda/mlstm_backward.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kRowThreads = 64, kChunkThreads = 128, kHeadThreads = 256;

// One block a token: e_l and x_l = q_l . dQ_past_l.
template <class T>
GPU_KERNEL(kRowThreads)
void rows_kernel(MlstmBackwardArgs a, BackwardWork work) {
  const int64_t token = blockIdx.x, head = token / a.size.tokens, within = token % a.size.tokens;
  const ChunkPlace at(a.size, head * a.size.num_chunks() + within / a.size.chunk);
  const int64_t l = within - at.first, dqk = a.size.dqk;
  const ChunkStates states(a, at);
  const T* q = as<T>(a.q) + at.at(a.qs) + l * a.qs.token;
  float through = 0, past_nt = 0, num = 0, nt = 0;
  for (int64_t d = threadIdx.x; d < dqk; d += kRowThreads) {
    const float value = to_float(q[d]);
    through = fma(value, work.cg[token * dqk + d], through);
    if (states.n) past_nt = fma(value, states.n[d], past_nt);
  }
  for (int64_t j = threadIdx.x; j <= l; j += kRowThreads) {
    const float p = work.p[token * a.size.chunk + j];
    num = fma(p, work.dp[token * a.size.chunk + j], num);
    nt += p;
  }
  const float factor = query_factor(a, work.sums, token, states.before);
  through = block_sum(through), past_nt = block_sum(past_nt), num = block_sum(num), nt = block_sum(nt);
  if (threadIdx.x != 0) return;
  float e = 0;
  if (a.exact && a.options.normalize) {
    const float signed_nt = a.nt ? a.nt[token] : nt + factor * past_nt;
    if (abs(signed_nt) >= exp(-a.m[token]))
      e = (signed_nt > 0 ? -1.0f : 1.0f) * (num + factor * through) * output_factor(a, token);
  }
  work.e[token] = e;
  work.x[token] = factor * (through + e * past_nt);
}

// One block a token: e_l from h, where the outputs' products do not give it.
template <class T>
GPU_KERNEL(kRowThreads)
void denominator_kernel(MlstmBackwardArgs a, BackwardWork work) {
  const int64_t token = blockIdx.x, head = token / a.size.tokens, within = token % a.size.tokens;
  const ChunkPlace at(a.size, head * a.size.num_chunks() + within / a.size.chunk);
  const T* dh = as<T>(a.dh) + at.at(a.dhs) + (within - at.first) * a.dhs.token;
  const T* h = as<T>(a.h) + token * a.size.dv;
  float dot = 0;
  for (int64_t v = threadIdx.x; v < a.size.dv; v += kRowThreads)
    dot = fma(to_float(dh[v]), to_float(h[v]), dot);
  dot = block_sum(dot);
  if (threadIdx.x != 0) return;
  const bool active = a.options.normalize && abs(a.nt[token]) >= exp(-a.m[token]);
  work.e[token] = active ? (a.nt[token] > 0 ? -1.0f : 1.0f) * dot * output_factor(a, token) : 0.0f;
}

// One block a token: y_j = k_j . dK_future_j.
template <class T>
GPU_KERNEL(kRowThreads)
void key_rows_kernel(MlstmBackwardArgs a, BackwardWork work) {
  const int64_t token = blockIdx.x, head = token / a.size.tokens, within = token % a.size.tokens;
  const ChunkPlace at(a.size, head * a.size.num_chunks() + within / a.size.chunk);
  const int64_t dqk = a.size.dqk;
  const ChunkStates states(a, at);
  const T* k = as<T>(a.k) + at.at(a.ks) + (within - at.first) * a.ks.token;
  float sum = 0;
  for (int64_t d = threadIdx.x; d < dqk; d += kRowThreads)
    sum = fma(to_float(k[d]), work.vd[token * dqk + d] + (states.dn ? states.dn[d] : 0.0f), sum);
  sum = block_sum(sum);
  if (threadIdx.x == 0) work.y[token] = decay(work.sums.a[token] - finite_m(states.after)) * sum;
}

// One block a chunk: di, df. Column sums of R run from the chunk's end, and their partial sums replace D.
GPU_KERNEL(kChunkThreads)
void gates_kernel(MlstmBackwardArgs a, BackwardWork work) {
  const ChunkPlace at(a.size, blockIdx.x);
  const int64_t tokens = at.head * a.size.tokens + at.first, chunk = a.size.chunk;
  const ChunkStates states(a, at);
  float dot = 0;
  for (int64_t i = threadIdx.x; i < a.size.dqk * a.size.dv; i += kChunkThreads)
    dot = fma(states.c[i], states.dc[i], dot);
  for (int64_t d = threadIdx.x; states.n && states.dn && d < a.size.dqk; d += kChunkThreads)
    dot = fma(states.n[d], states.dn[d], dot);
  const float keep = decay(exponent_of(work.sums.g[blockIdx.x], states.before, finite_m(states.after)));
  const float kept = keep * block_sum(dot);
  for (int j = static_cast<int>(threadIdx.x); j < at.count; j += kChunkThreads) {
    float sum = 0;
    for (int l = at.count - 1; l >= j; --l) {
      const int64_t place = (tokens + l) * chunk + j;
      sum = fma(work.dp[place] + work.e[tokens + l], work.p[place], sum);
      work.w[place] = sum;
    }
    const bool pre = a.preactivation && a.options.sigmoid_input;
    a.di[tokens + j] = (sum + work.y[tokens + j]) * (pre ? 1.0f - exp(a.li[tokens + j]) : 1.0f);
  }
  sync_block();
  for (int t = static_cast<int>(threadIdx.x); t < at.count; t += kChunkThreads) {
    float sum = 0;
    for (int j = 0; j < t; ++j) sum += work.w[(tokens + t) * chunk + j] + work.y[tokens + j];
    for (int r = t; r < at.count; ++r) sum += work.x[tokens + r];
    // 1 - sigmoid(f) = 1 - e^lf, by its series where the difference would lose digits
    const float lf = a.lf[tokens + t];
    const float closed = lf > -0.02f ? -lf * (1.0f + lf * (0.5f + lf * (1.0f / 6.0f))) : 1.0f - exp(lf);
    a.df[tokens + t] = (sum + kept) * (a.preactivation ? closed : 1.0f);
  }
}

// One block a head: dm0 = <C0, dC0> + n0 . dn0.
GPU_KERNEL(kHeadThreads)
void initial_kernel(MlstmBackwardArgs a) {
  const int64_t head = blockIdx.x, dqk = a.size.dqk, matrix = dqk * a.size.dv;
  float dot = 0;
  if (a.exact && a.c0) {
    for (int64_t i = threadIdx.x; i < matrix; i += kHeadThreads)
      dot = fma(a.c0[head * matrix + i], a.dc0[head * matrix + i], dot);
    for (int64_t d = threadIdx.x; d < dqk; d += kHeadThreads)
      dot = fma(a.n0[head * dqk + d], a.dn0[head * dqk + d], dot);
  }
  dot = block_sum(dot);
  if (threadIdx.x == 0) a.dm0[head] = dot;
}

}  // namespace

void mlstm_backward_rows(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work) {
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_backward", [&]<class T>() {
    launch(stream, {.grid = {a.size.batch * a.size.heads * a.size.tokens}, .block = kRowThreads},
           rows_kernel<T>, a, work);
  });
}

void mlstm_backward_denominators(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work) {
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_backward", [&]<class T>() {
    launch(stream, {.grid = {a.size.batch * a.size.heads * a.size.tokens}, .block = kRowThreads},
           denominator_kernel<T>, a, work);
  });
}

void mlstm_backward_gates(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work) {
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_backward", [&]<class T>() {
    launch(stream, {.grid = {a.size.batch * a.size.heads * a.size.tokens}, .block = kRowThreads},
           key_rows_kernel<T>, a, work);
  });
  launch(stream, {.grid = {a.size.batch * a.size.heads * a.size.num_chunks()}, .block = kChunkThreads},
         gates_kernel, a, work);
}

void mlstm_backward_initial(Stream stream, const MlstmBackwardArgs& a) {
  launch(stream, {.grid = {a.size.batch * a.size.heads}, .block = kHeadThreads}, initial_kernel, a);
}

}  // namespace trivium::TRIVIUM_GPU_NS
