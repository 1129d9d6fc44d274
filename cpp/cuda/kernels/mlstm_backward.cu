// The matrix products of the mLSTM's chunkwise backward pass. Pairs of tokens of a chunk pass through work
// memory once as P, G V^T and D, so that each product has its operands ready.
#include "cuda/mlstm_backward.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// 64 tokens of a chunk: blocks of one grid dimension.
struct TokenBlock {
  ChunkPlace at;
  int r0;
  int64_t tokens;  // of the chunk's first token, over all heads
  GPU_DEVICE TokenBlock(const MlstmSizes& s, int row_blocks, int64_t index)
      : at(s, index / row_blocks),
        r0(static_cast<int>(index % row_blocks) * kEdge),
        tokens(at.head * s.tokens + at.first) {}
  GPU_DEVICE bool has(int r) const { return r0 + r < at.count; }
};

// out[l][d] = rows_l . states[d] over the values' columns: C G_l (past) or dC v_l (future).
template <class T, bool kPast>
GPU_KERNEL(kMlstmThreads, 4)
void state_rows_kernel(MlstmBackwardArgs a, BackwardWork work, int row_blocks) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  const TokenBlock t(a.size, row_blocks, blockIdx.x);
  if (t.r0 >= t.at.count) return;
  const int64_t d0 = static_cast<int64_t>(blockIdx.y) * kEdge, dqk = a.size.dqk, dv = a.size.dv;
  const ChunkStates states(a, t.at);
  const MlstmStrides strides = kPast ? a.dhs : a.vs;
  const T* rows = as<T>(kPast ? a.dh : a.v) + t.at.at(strides);
  const float* matrix = kPast ? states.c : states.dc;
  BlockAcc<P> acc;
  acc.clear();
  const auto row = [&](int r, int64_t v) {
    if (!t.has(r)) return 0.0f;
    const float value = to_float(rows[(t.r0 + r) * strides.token + v]);
    return kPast ? value * output_factor(a, t.tokens + t.r0 + r) : value;
  };
  const auto state = [&](int r, int64_t v) { return d0 + r < dqk ? matrix[(d0 + r) * dv + v] : 0.0f; };
  add_product<P>(acc, dv, shared, Along::k, row, Along::k, state);
  float* out = kPast ? work.cg : work.vd;
  acc.for_each([&](int r, int col, float& x) {
    if (t.has(r) && d0 + col < dqk) out[(t.tokens + t.r0 + r) * dqk + d0 + col] = x;
  });
}

// P, G V^T and D of 64 x 64 pairs of tokens.
template <class T>
GPU_KERNEL(kMlstmThreads, 3)
void pairs_kernel(MlstmBackwardArgs a, BackwardWork work, int row_blocks) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  GPU_SHARED(float, decays, kPairs);
  GPU_SHARED(float, row_m, kEdge);
  const TokenBlock t(a.size, row_blocks, blockIdx.x);
  const int j0 = static_cast<int>(blockIdx.y) * kEdge;
  if (t.r0 >= t.at.count || j0 > t.r0) return;
  const T *q = as<T>(a.q) + t.at.at(a.qs), *k = as<T>(a.k) + t.at.at(a.ks);
  const T *v = as<T>(a.v) + t.at.at(a.vs), *dh = as<T>(a.dh) + t.at.at(a.dhs);
  mlstm_decays(work.sums, a.lf, a.li, t.tokens, t.r0, j0, t.at.count, decays);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kEdge) row_m[thread] = t.has(thread) ? finite_m(a.m[t.tokens + t.r0 + thread]) : 0.0f;
  sync_block();
  const auto store = [&](BlockAcc<P>& acc, bool scores) {
    acc.for_each([&](int r, int col, float& x) {
      if (!t.has(r) || j0 + col > t.r0 + r) return;
      const int64_t token = t.tokens + t.r0 + r, at = token * a.size.chunk + j0 + col;
      if (!scores) {
        work.dp[at] = x;
        return;
      }
      const float weight = decay(decays[r * kPairPitch + col] - row_m[r]);
      work.w[at] = weight;
      work.p[at] = a.options.scale * x * weight;
    });
  };
  BlockAcc<P> acc;
  acc.clear();
  const auto query = [&](int r, int64_t d) {
    return t.has(r) ? to_float(q[(t.r0 + r) * a.qs.token + d]) : 0.0f;
  };
  const auto key = [&](int r, int64_t d) {
    return j0 + r < t.at.count ? to_float(k[(j0 + r) * a.ks.token + d]) : 0.0f;
  };
  add_product<P>(acc, a.size.dqk, shared, Along::k, query, Along::k, key);
  store(acc, true);
  acc.clear();
  const auto gradient = [&](int r, int64_t d) {
    return t.has(r) ? to_float(dh[(t.r0 + r) * a.dhs.token + d]) * output_factor(a, t.tokens + t.r0 + r)
                    : 0.0f;
  };
  const auto value = [&](int r, int64_t d) {
    return j0 + r < t.at.count ? to_float(v[(j0 + r) * a.vs.token + d]) : 0.0f;
  };
  add_product<P>(acc, a.size.dv, shared, Along::k, gradient, Along::k, value);
  store(acc, false);
}

// A block carries 64 x 64 of dC of one head from the last chunk to the first, as states_kernel does forward.
template <class T>
GPU_KERNEL(kMlstmThreads, 3)
void gradient_states_kernel(MlstmBackwardArgs a, BackwardWork work) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  GPU_SHARED(float, query_factors, kMaxChunk);  // of the chunk's tokens
  GPU_SHARED(float, output_factors, kMaxChunk);
  const int64_t head = blockIdx.x, dqk = a.size.dqk, dv = a.size.dv, chunks = a.size.num_chunks();
  const int64_t d0 = static_cast<int64_t>(blockIdx.y) * kEdge, v0 = static_cast<int64_t>(blockIdx.z) * kEdge;
  const int64_t n_at = d0 + threadIdx.x;
  const bool owns_n = blockIdx.z == 0 && threadIdx.x < kEdge && n_at < dqk;
  const int64_t corner = d0 * dv + v0;
  // Places within the 64 rows in 32 bits: they are kept for all chunks.
  const int rows = static_cast<int>(dqk - d0), cols = static_cast<int>(dv - v0), pitch = static_cast<int>(dv);
  const float* last = a.dc_last ? a.dc_last + head * dqk * dv + corner : nullptr;
  BlockAcc<P> dc;
  dc.for_each(
      [&](int r, int col, float& x) { x = last && r < rows && col < cols ? last[r * pitch + col] : 0.0f; });
  float dn = owns_n && a.dn_last && a.exact ? a.dn_last[head * dqk + n_at] : 0.0f;
  for (int64_t k = chunks; k >= 0; --k) {
    const int64_t slot = head * (chunks + 1 - a.dc_first) + k - a.dc_first;
    const bool kept = k >= a.dc_first, first = k == 0 && a.dc0;
    float* state = kept ? a.dc_states + slot * dqk * dv + corner : nullptr;
    float* initial = first ? a.dc0 + head * dqk * dv + corner : nullptr;
    dc.for_each([&](int r, int col, float& x) {
      if (r >= rows || col >= cols) return;
      if (state) state[r * pitch + col] = x;
      if (initial) initial[r * pitch + col] = x;
    });
    if (owns_n && kept) a.dn_states[slot * dqk + n_at] = dn;
    if (owns_n && first) a.dn0[head * dqk + n_at] = dn;
    if (k == 0) return;
    const ChunkPlace at(a.size, head * chunks + k - 1);
    const int64_t tokens = head * a.size.tokens + at.first;
    const float before = a.m_states[head * (chunks + 1) + k - 1], after = a.m_states[head * (chunks + 1) + k];
    const float keep = decay(exponent_of(work.sums.g[head * chunks + k - 1], before, finite_m(after)));
    sync_block();  // the factors before have been read
    for (int l = static_cast<int>(threadIdx.x); l < at.count; l += kMlstmThreads) {
      query_factors[l] = query_factor(a, work.sums, tokens + l, before);
      output_factors[l] = output_factor(a, tokens + l);
    }
    const T *q = as<T>(a.q) + at.at(a.qs), *dh = as<T>(a.dh) + at.at(a.dhs);
    dc.for_each([&](int, int, float& x) { x *= keep; });
    const auto query = [&](int r, int64_t l) {
      return d0 + r < dqk ? query_factors[l] * to_float(q[l * a.qs.token + d0 + r]) : 0.0f;
    };
    const auto gradient = [&](int r, int64_t l) {
      return v0 + r < dv ? output_factors[l] * to_float(dh[l * a.dhs.token + v0 + r]) : 0.0f;
    };
    add_product<P>(dc, at.count, shared, Along::rows, query, Along::rows, gradient);
    if (!owns_n || !a.exact) continue;
    float more = 0;
    for (int l = 0; l < at.count; ++l)
      more = fma(query_factors[l] * to_float(q[l * a.qs.token + n_at]), work.e[tokens + l], more);
    dn = fma(dn, keep, more);
  }
}

// dQ (kQueries) or dK of 64 tokens and 64 columns: the pairs' part, and what passes through the states.
template <class T, bool kQueries>
GPU_KERNEL(kMlstmThreads, 4)
void query_key_kernel(MlstmBackwardArgs a, BackwardWork work, int row_blocks) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  const TokenBlock t(a.size, row_blocks, blockIdx.x);
  if (t.r0 >= t.at.count) return;
  const int64_t d0 = static_cast<int64_t>(blockIdx.y) * kEdge, dqk = a.size.dqk;
  const ChunkStates states(a, t.at);
  const MlstmStrides strides = kQueries ? a.ks : a.qs;
  const T* others = as<T>(kQueries ? a.k : a.q) + t.at.at(strides);
  // dS between row r of this block and token `other`: row and column change places for keys.
  const int64_t begin = kQueries ? 0 : t.r0;
  const int64_t end = kQueries && t.r0 + kEdge < t.at.count ? t.r0 + kEdge : t.at.count;
  const auto pair = [&](int r, int64_t k) {
    const int64_t other = begin + k, l = kQueries ? t.r0 + r : other, j = kQueries ? other : t.r0 + r;
    if (!t.has(r) || j > l) return 0.0f;
    const int64_t at = (t.tokens + l) * a.size.chunk + j;
    return a.options.scale * (work.dp[at] + work.e[t.tokens + l]) * work.w[at];
  };
  const auto column = [&](int r, int64_t k) {
    return d0 + r < dqk ? to_float(others[(begin + k) * strides.token + d0 + r]) : 0.0f;
  };
  BlockAcc<P> acc;
  acc.clear();
  add_product<P>(acc, end - begin, shared, kQueries ? Along::k : Along::rows, pair, Along::rows, column);
  T* out = as<T>(kQueries ? a.dq : a.dk);
  acc.for_each([&](int r, int col, float& x) {
    if (!t.has(r) || d0 + col >= dqk) return;
    const int64_t token = t.tokens + t.r0 + r, d = d0 + col;
    float through;
    if (kQueries)
      through = query_factor(a, work.sums, token, states.before) *
                (work.cg[token * dqk + d] + (states.n ? work.e[token] * states.n[d] : 0.0f));
    else
      through = decay(work.sums.a[token] - finite_m(states.after)) *
                (work.vd[token * dqk + d] + (states.dn ? states.dn[d] : 0.0f));
    out[token * dqk + d] = from_float<T>(x + through);
  });
}

// dV of 64 tokens and 64 columns.
template <class T>
GPU_KERNEL(kMlstmThreads, 3)
void value_kernel(MlstmBackwardArgs a, BackwardWork work, int row_blocks) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  GPU_SHARED(float, future, kEdge);  // of rows: the decay of dC
  const TokenBlock t(a.size, row_blocks, blockIdx.x);
  if (t.r0 >= t.at.count) return;
  const int64_t v0 = static_cast<int64_t>(blockIdx.y) * kEdge, dqk = a.size.dqk, dv = a.size.dv;
  const ChunkStates states(a, t.at);
  const T *k = as<T>(a.k) + t.at.at(a.ks), *dh = as<T>(a.dh) + t.at.at(a.dhs);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kEdge)
    future[thread] =
        t.has(thread) ? decay(work.sums.a[t.tokens + t.r0 + thread] - finite_m(states.after)) : 0.0f;
  BlockAcc<P> acc;
  acc.clear();
  const auto key = [&](int r, int64_t d) {
    return t.has(r) ? to_float(k[(t.r0 + r) * a.ks.token + d]) : 0.0f;
  };
  const auto state = [&](int r, int64_t d) { return v0 + r < dv ? states.dc[d * dv + v0 + r] : 0.0f; };
  add_product<P>(acc, dqk, shared, Along::k, key, Along::rows, state);
  acc.for_each([&](int r, int, float& x) { x *= future[r]; });
  const auto pair = [&](int r, int64_t i) {
    const int64_t l = t.r0 + i, j = t.r0 + r;
    return t.has(r) && j <= l ? work.p[(t.tokens + l) * a.size.chunk + j] : 0.0f;
  };
  const auto gradient = [&](int r, int64_t i) {
    const int64_t l = t.r0 + i;
    return v0 + r < dv ? output_factor(a, t.tokens + l) * to_float(dh[l * a.dhs.token + v0 + r]) : 0.0f;
  };
  add_product<P>(acc, t.at.count - t.r0, shared, Along::rows, pair, Along::rows, gradient);
  T* out = as<T>(a.dv);
  acc.for_each([&](int r, int col, float& x) {
    if (t.has(r) && v0 + col < dv) out[(t.tokens + t.r0 + r) * dv + v0 + col] = from_float<T>(x);
  });
}

template <class T>
void backward_as(Stream stream, const MlstmBackwardArgs& a, const BackwardWork& work) {
  const MlstmSizes& s = a.size;
  const int64_t heads = s.batch * s.heads, key_blocks = ceil_div(s.dqk, kEdge),
                value_blocks = ceil_div(s.dv, kEdge);
  const int row_blocks = static_cast<int>(ceil_div(s.chunk, kEdge));
  const int64_t token_blocks = heads * s.num_chunks() * row_blocks;
  const bool output = a.parts & kMlstmOutput;
  if (output) {
    launch(stream, {.grid = {token_blocks, key_blocks}, .block = kMlstmThreads}, state_rows_kernel<T, true>,
           a, work, row_blocks);
    launch(stream, {.grid = {token_blocks, row_blocks}, .block = kMlstmThreads}, pairs_kernel<T>, a, work,
           row_blocks);
    mlstm_backward_rows(stream, a, work);
  } else if (a.exact) {
    mlstm_backward_denominators(stream, a, work);
  }
  if (a.parts & kMlstmStates)
    launch(stream, {.grid = {heads, key_blocks, value_blocks}, .block = kMlstmThreads},
           gradient_states_kernel<T>, a, work);
  if (!output) return;
  launch(stream, {.grid = {token_blocks, key_blocks}, .block = kMlstmThreads}, state_rows_kernel<T, false>, a,
         work, row_blocks);
  launch(stream, {.grid = {token_blocks, key_blocks}, .block = kMlstmThreads}, query_key_kernel<T, true>, a,
         work, row_blocks);
  launch(stream, {.grid = {token_blocks, key_blocks}, .block = kMlstmThreads}, query_key_kernel<T, false>, a,
         work, row_blocks);
  launch(stream, {.grid = {token_blocks, value_blocks}, .block = kMlstmThreads}, value_kernel<T>, a, work,
         row_blocks);
  mlstm_backward_gates(stream, a, work);
}

}  // namespace

void mlstm_backward(Stream stream, const MlstmBackwardArgs& a) {
  const BackwardWork work = BackwardWork::at(a.workspace, a.size);
  mlstm_gate_sums(stream, a.size, a.li, a.lf, work.sums, nullptr);
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_backward",
                                   [&]<class T>() { backward_as<T>(stream, a, work); });
  if ((a.parts & kMlstmStates) && a.dc0) mlstm_backward_initial(stream, a);
}

}  // namespace trivium::TRIVIUM_GPU_NS
