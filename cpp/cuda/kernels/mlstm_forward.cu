// The chunkwise forward pass of the mLSTM: states at the chunk boundaries, then all outputs at once. The
// stabilisers depend on the gates alone and are known before, so nothing is rescaled on the way.
#include "cuda/mlstm.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// A block carries 64 x 64 of C of one head through all chunks: C = keep C + (diag(out_of) K)^T V. Blocks of
// the first columns carry n too.
template <class T>
GPU_KERNEL(kMlstmThreads, 3)
void states_kernel(MlstmForwardArgs a, GateSums sums) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  GPU_SHARED(float, weights, kMaxChunk);  // of the chunk's tokens at its end
  const int64_t head = blockIdx.x, dqk = a.size.dqk, dv = a.size.dv, chunks = a.size.num_chunks();
  const int64_t d0 = static_cast<int64_t>(blockIdx.y) * kEdge, v0 = static_cast<int64_t>(blockIdx.z) * kEdge;
  // Places within the 64 rows in 32 bits: they are kept for all chunks.
  const int rows = static_cast<int>(dqk - d0), cols = static_cast<int>(dv - v0), pitch = static_cast<int>(dv);
  const float* start = a.c0 ? a.c0 + (head * dqk + d0) * dv + v0 : nullptr;
  BlockAcc<P> c;
  c.for_each(
      [&](int r, int col, float& x) { x = start && r < rows && col < cols ? start[r * pitch + col] : 0.0f; });
  const int64_t n_at = d0 + threadIdx.x;
  const bool owns_n = blockIdx.z == 0 && threadIdx.x < kEdge && n_at < dqk;
  float n = owns_n && a.n0 ? a.n0[head * dqk + n_at] : 0.0f;
  for (int64_t k = 0; k <= chunks; ++k) {
    const int64_t slot = head * (chunks + 1) + k;
    float* state = a.c_states + (slot * dqk + d0) * dv + v0;
    float* last = k == chunks && a.c_last ? a.c_last + (head * dqk + d0) * dv + v0 : nullptr;
    c.for_each([&](int r, int col, float& x) {
      if (r >= rows || col >= cols) return;
      state[r * pitch + col] = x;
      if (last) last[r * pitch + col] = x;
    });
    if (owns_n) a.n_states[slot * dqk + n_at] = n;
    if (owns_n && last) a.n_last[head * dqk + n_at] = n;
    if (last && threadIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) a.m_last[head] = a.m_states[slot];
    if (k == chunks) return;
    const ChunkPlace at(a.size, head * chunks + k);
    const float before = a.m_states[slot], after = finite_m(a.m_states[slot + 1]);
    const float keep = decay(exponent_of(sums.g[head * chunks + k], before, after));
    sync_block();  // the weights before have been read
    for (int l = static_cast<int>(threadIdx.x); l < at.count; l += kMlstmThreads)
      weights[l] = decay(sums.a[head * a.size.tokens + at.first + l] - after);
    const T *key = as<T>(a.k) + at.at(a.ks), *value = as<T>(a.v) + at.at(a.vs);
    c.for_each([&](int, int, float& x) { x *= keep; });
    const auto keys = [&](int r, int64_t l) {
      return d0 + r < dqk ? weights[l] * to_float(key[l * a.ks.token + d0 + r]) : 0.0f;
    };
    const auto values = [&](int r, int64_t l) {
      return v0 + r < dv ? to_float(value[l * a.vs.token + v0 + r]) : 0.0f;
    };
    add_product<P>(c, at.count, shared, Along::rows, keys, Along::rows, values);
    if (!owns_n) continue;
    float more = 0;  // a sum of its own: one by one, faint tokens would be lost beside n
    for (int l = 0; l < at.count; ++l) more = fma(weights[l], to_float(key[l * a.ks.token + n_at]), more);
    n = fma(n, keep, more);
  }
}

// A block gives 64 tokens and 64 columns of h: the past through C, then the chunk's own tokens 64 at a time.
template <class T>
GPU_KERNEL(kMlstmThreads, 3)
void output_kernel(MlstmForwardArgs a, GateSums sums, int row_blocks) {
  using P = ProductType<T>;
  GPU_SHARED(P, shared, Operands<P>::kCount);
  GPU_SHARED(float, pairs, kPairs);
  GPU_SHARED(float, past, kEdge);  // of rows: scale times the decay of C, at the end 1 / den
  GPU_SHARED(float, row_m, kEdge);
  const ChunkPlace at(a.size, blockIdx.x / row_blocks);
  const int r0 = static_cast<int>(blockIdx.x % row_blocks) * kEdge, thread = static_cast<int>(threadIdx.x);
  if (r0 >= at.count) return;
  const int64_t v0 = static_cast<int64_t>(blockIdx.y) * kEdge, dqk = a.size.dqk, dv = a.size.dv;
  const int64_t slot = at.head * (a.size.num_chunks() + 1) + at.chunk,
                tokens = at.head * a.size.tokens + at.first;
  const int rows = at.count - r0, cols = static_cast<int>(dv - v0);
  const T *q = as<T>(a.q) + at.at(a.qs) + r0 * a.qs.token, *k = as<T>(a.k) + at.at(a.ks),
          *v = as<T>(a.v) + at.at(a.vs) + v0;
  const float *c = a.c_states + slot * dqk * dv + v0, *n = a.n_states + slot * dqk, before = a.m_states[slot];
  const auto query = [&](int r, int64_t d) { return r < rows ? to_float(q[r * a.qs.token + d]) : 0.0f; };
  if (thread < kEdge) {
    const bool row = thread < rows;
    const float m = row ? finite_m(a.m[tokens + r0 + thread]) : 0.0f;
    row_m[thread] = m;
    past[thread] = row ? a.options.scale * decay(exponent_of(sums.b[tokens + r0 + thread], before, m)) : 0.0f;
  }
  BlockAcc<P> out;
  out.clear();
  const auto columns = [&](int r, int64_t d) { return r < cols ? c[d * dv + r] : 0.0f; };
  add_product<P>(out, dqk, shared, Along::k, query, Along::rows, columns);
  out.for_each([&](int r, int, float& x) { x *= past[r]; });
  float nt = 0;  // of row `thread`
  if (thread < kEdge) {
    for (int64_t d = 0; d < dqk; ++d) nt = fma(query(thread, d), n[d], nt);
    nt *= past[thread];
  }
  for (int j0 = 0; j0 <= r0; j0 += kEdge) {
    // The products' own barriers lie between the reads of the pairs before and here, and before the use
    // below.
    mlstm_decays(sums, a.lf, a.li, tokens, r0, j0, at.count, pairs);
    BlockAcc<P> scores;
    scores.clear();
    const auto key = [&](int r, int64_t d) {
      return j0 + r < at.count ? to_float(k[(j0 + r) * a.ks.token + d]) : 0.0f;
    };
    add_product<P>(scores, dqk, shared, Along::k, query, Along::k, key);
    scores.for_each([&](int r, int col, float& x) {
      float& place = pairs[r * kPairPitch + col];
      const bool pair = r < rows && j0 + col <= r0 + r;
      place = pair ? a.options.scale * x * decay(place - row_m[r]) : 0.0f;
    });
    sync_block();
    if (thread < kEdge)
      for (int j = 0; j < kEdge; ++j) nt += pairs[thread * kPairPitch + j];
    const int depth = at.count - j0 < kEdge ? at.count - j0 : kEdge;
    const auto weight = [&](int r, int64_t j) { return pairs[r * kPairPitch + j]; };
    const auto value = [&](int r, int64_t j) {
      return r < cols ? to_float(v[(j0 + j) * a.vs.token + r]) : 0.0f;
    };
    add_product<P>(out, depth, shared, Along::k, weight, Along::rows, value);
  }
  if (thread < kEdge && thread < rows) {
    const int64_t token = tokens + r0 + thread;
    float den = a.options.normalize ? max(abs(nt), exp(-a.m[token])) : 1.0f;
    if (isnan(nt)) den = nt;
    past[thread] = a.options.normalize ? 1.0f / (den + a.options.eps) : 1.0f;
    if (blockIdx.y == 0) {
      if (a.den) a.den[token] = den;
      if (a.nt) a.nt[token] = nt;
    }
  }
  sync_block();
  T* h = as<T>(a.h) + at.at(a.hs) + r0 * a.hs.token + v0;
  out.for_each([&](int r, int col, float& x) {
    if (r < rows && col < cols) h[r * a.hs.token + col] = from_float<T>(x * past[r]);
  });
}

}  // namespace

void mlstm_forward(Stream stream, const MlstmForwardArgs& a) {
  const MlstmSizes& s = a.size;
  const int64_t heads = s.batch * s.heads;
  const GateSums sums = GateSums::at(a.workspace, s);
  const bool output = a.parts & kMlstmOutput;
  mlstm_gate_sums(stream, s, a.li, a.lf, sums, output ? a.m : nullptr);
  if (a.parts & kMlstmStates) mlstm_scan_m(stream, s, a.options, sums, a.m0, a.m_states);
  if (output) mlstm_finish_m(stream, s, a.options, sums, a.m_states, a.m);
  const int row_blocks = static_cast<int>(ceil_div(s.chunk, kEdge));
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_forward", [&]<class T>() {
    if (a.parts & kMlstmStates)
      launch(stream, {.grid = {heads, ceil_div(s.dqk, kEdge), ceil_div(s.dv, kEdge)}, .block = kMlstmThreads},
             states_kernel<T>, a, sums);
    if (output)
      launch(stream,
             {.grid = {heads * s.num_chunks() * row_blocks, ceil_div(s.dv, kEdge)}, .block = kMlstmThreads},
             output_kernel<T>, a, sums, row_blocks);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
