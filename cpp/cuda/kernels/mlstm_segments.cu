// The mLSTM of a language model's step. Outputs of the segments' first chunks, whose states are in the slots;
// then the states after full chunks; then outputs of the further chunks.
#include "cuda/mlstm_segments.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kTokenThreads = 256, kRuns = kTokenThreads / kEdge;  // runs of 64 dimensions at once

struct RunSums {
  float *scores, *past, *nt;  // of 4 runs: [4][64] for tokens and columns, [4]
};

// Adds the runs of d in [d0, d0 + 256) to what this thread is for: with 64 threads a run, the score of token
// j and the column's share of the past.
GPU_DEVICE void add_runs(const MlstmSegmentsArgs& a, const Piece& p, int64_t d0, int64_t column,
                         const float* query, const float* key, const RunSums& sums) {
  const int j = static_cast<int>(threadIdx.x) % kEdge, run = static_cast<int>(threadIdx.x) / kEdge;
  const int64_t from = d0 + static_cast<int64_t>(run) * kEdge;
  const int depth = static_cast<int>(min(a.dqk - from, static_cast<int64_t>(kEdge)));
  const float *q = query + run * kEdge, *own = key + run * kEdge;
  const float *c = p.c + from * a.dv + column, *n = p.n + from;
  float score = 0, past = 0, nt = 0;
  if (j < p.first) {
#pragma unroll 8
    for (int i = 0; i < depth; ++i) score = fma(q[i], p.slot.k[(from + i) * kChunk + j], score);
  } else if (j == p.first) {
    for (int i = 0; i < depth; ++i) score = fma(q[i], own[i], score);
  }
  if (!p.zero && column < a.dv) {
#pragma unroll 8
    for (int i = 0; i < depth; ++i) past = fma(q[i], c[i * a.dv], past);
  }
  if (!p.zero && j == 0)
    for (int i = 0; i < depth; ++i) nt = fma(q[i], n[i], nt);
  sums.scores[threadIdx.x] = score;
  sums.past[threadIdx.x] = past;
  if (j == 0) sums.nt[run] = nt;
}

// Pieces of one token, and 64 columns of its h. Reads C, the chunk's keys and values once.
GPU_KERNEL(kTokenThreads)
void segment_token_kernel(MlstmSegmentsArgs a, bool further) {
  GPU_SHARED(float, gates, 4 * kChunk);
  GPU_SHARED(float, query, kTokenThreads);
  GPU_SHARED(float, key, kTokenThreads);
  GPU_SHARED(float, score_runs, kTokenThreads);
  GPU_SHARED(float, past_runs, kTokenThreads);
  GPU_SHARED(float, nt_runs, kRuns);
  GPU_SHARED(float, weights, kChunk);
  GPU_SHARED(float, inverse, 1);
  const Piece p = launched_piece(a, further, blockIdx.x);
  if (p.last - p.first != 1) return;
  const int thread = static_cast<int>(threadIdx.x), l = p.first;
  const int64_t v0 = static_cast<int64_t>(blockIdx.y) * kEdge, column = v0 + thread % kEdge;
  const TokenGates g{gates, gates + kChunk, gates + 2 * kChunk, gates + 3 * kChunk};
  token_gates(a, p, g);
  const int64_t row = (p.row0 + l) * a.stride + p.head * a.dqk;
  float score = 0, past = 0, nt = 0;  // of threads below 64: token `thread`, its column, thread 0
  for (int64_t d0 = 0; d0 < a.dqk; d0 += kTokenThreads) {
    const bool exists = d0 + thread < a.dqk;
    query[thread] = exists ? a.q[row + d0 + thread] : 0.0f;
    key[thread] = exists ? a.k[row + d0 + thread] : 0.0f;
    sync_block();
    add_runs(a, p, d0, column, query, key, {score_runs, past_runs, nt_runs});
    sync_block();
    for (int run = 0; thread < kEdge && run < kRuns && d0 + run * kEdge < a.dqk; ++run) {
      score += score_runs[run * kEdge + thread];
      past += past_runs[run * kEdge + thread];
      if (thread == 0) nt += nt_runs[run];
    }
  }
  if (thread < kEdge) {
    float sum = 0;
    for (int r = thread + 1; r <= l; ++r) sum += g.lf[r];
    weights[thread] =
        thread <= l ? a.options.scale * score * decay(sum + g.li[thread] - finite_m(g.m[l])) : 0.0f;
  }
  sync_block();
  if (thread == 0) {
    nt *= g.into[l];
    for (int j = 0; j <= l; ++j) nt += weights[j];
    inverse[0] = inverse_denominator(a.options, nt, g.m[l]);
  }
  sync_block();
  if (thread < kEdge && column < a.dv) {
    float inner = 0;
#pragma unroll 8
    for (int j = 0; j < l; ++j) inner = fma(weights[j], p.slot.v[j * a.dv + column], inner);
    inner = fma(weights[l], value_of(a, p, l, column), inner);
    a.h[((p.row0 + l) * a.heads + p.head) * a.dv + column] = (past * g.into[l] + inner) * inverse[0];
  }
  keep_tokens(a, p, g, v0);
}

// total += a b^T over `depth`, in runs of 64.
template <class A, class B>
GPU_DEVICE void add_in_runs(BlockAcc<float>& total, int64_t depth, float* shared, A a, Along along_b, B b) {
  for (int64_t k0 = 0; k0 < depth; k0 += kEdge) {
    BlockAcc<float> run;
    run.clear();
    add_product<float>(
        run, min(depth - k0, static_cast<int64_t>(kEdge)), shared, Along::k,
        [&](int r, int64_t k) { return a(r, k0 + k); }, along_b,
        [&](int r, int64_t k) { return b(r, k0 + k); });
#pragma unroll
    for (int r = 0; r < BlockAcc<float>::kRows; ++r)
#pragma unroll
      for (int c = 0; c < BlockAcc<float>::kCols; ++c) total.x[r][c] += run.x[r][c];
  }
}

// The weight of every pair of tokens, 0 where the second comes later: pairs[r * kPairPitch + j]. `scores`
// holds the products of queries and keys. All threads; ends synchronised.
GPU_DEVICE void pair_weights(const MlstmSegmentsArgs& a, const Piece& p, const TokenGates& g,
                             BlockAcc<float>& scores, float* pairs) {
  for (int j = static_cast<int>(threadIdx.x); j < p.last; j += kMlstmThreads) {
    float sum = 0;
    for (int r = j; r < p.last; ++r) {
      if (r > j) sum += g.lf[r];
      pairs[r * kPairPitch + j] = sum + g.li[j];
    }
  }
  sync_block();
  scores.for_each([&](int r, int j, float& x) {
    float& place = pairs[r * kPairPitch + j];
    const bool pair = r >= p.first && r < p.last && j <= r;
    place = pair ? a.options.scale * x * decay(place - finite_m(g.m[r])) : 0.0f;
  });
  sync_block();
}

// nt of the past of token r: over d in runs of 64.
GPU_DEVICE float past_nt(const MlstmSegmentsArgs& a, const Piece& p, int64_t r) {
  const float* q = a.q + (p.row0 + r) * a.stride + p.head * a.dqk;
  float nt = 0;
  for (int64_t d0 = 0; d0 < a.dqk && !p.zero; d0 += kEdge) {
    float run = 0;
    for (int64_t d = d0; d < d0 + kEdge && d < a.dqk; ++d) run = fma(q[d], p.n[d], run);
    nt += run;
  }
  return nt;
}

// Pieces of several tokens: 64 columns of their h.
GPU_KERNEL(kMlstmThreads)
void segment_piece_kernel(MlstmSegmentsArgs a, bool further) {
  GPU_SHARED(float, shared, Operands<float>::kCount);
  GPU_SHARED(float, pairs, kPairs);
  GPU_SHARED(float, gates, 4 * kChunk);
  GPU_SHARED(float, inverse, kChunk);
  const Piece p = launched_piece(a, further, blockIdx.x);
  if (p.last - p.first <= 1) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t v0 = static_cast<int64_t>(blockIdx.y) * kEdge;
  const TokenGates g{gates, gates + kChunk, gates + 2 * kChunk, gates + 3 * kChunk};
  token_gates(a, p, g);
  const auto query = [&](int r, int64_t d) {
    return r >= p.first && r < p.last ? a.q[(p.row0 + r) * a.stride + p.head * a.dqk + d] : 0.0f;
  };
  const auto key = [&](int j, int64_t d) { return j < p.last ? key_of(a, p, j, d) : 0.0f; };
  const auto columns = [&](int c, int64_t d) { return v0 + c < a.dv ? p.c[d * a.dv + v0 + c] : 0.0f; };
  {
    BlockAcc<float> scores;
    scores.clear();
    add_in_runs(scores, a.dqk, shared, query, Along::k, key);
    pair_weights(a, p, g, scores, pairs);
  }
  if (thread >= p.first && thread < p.last) {
    float nt = past_nt(a, p, thread) * g.into[thread];
    for (int j = 0; j <= thread; ++j) nt += pairs[thread * kPairPitch + j];
    inverse[thread] = inverse_denominator(a.options, nt, g.m[thread]);
  }
  BlockAcc<float> out;
  out.clear();
  if (!p.zero) add_in_runs(out, a.dqk, shared, query, Along::rows, columns);
  out.for_each([&](int r, int, float& x) { x *= r < p.last ? g.into[r] : 0.0f; });
  const auto weight = [&](int r, int64_t j) { return pairs[r * kPairPitch + j]; };
  const auto value = [&](int c, int64_t j) { return v0 + c < a.dv ? value_of(a, p, j, v0 + c) : 0.0f; };
  add_in_runs(out, p.last, shared, weight, Along::rows, value);
  out.for_each([&](int r, int c, float& x) {
    if (r >= p.first && r < p.last && v0 + c < a.dv)
      a.h[((p.row0 + r) * a.heads + p.head) * a.dv + v0 + c] = x * inverse[r];
  });
  keep_tokens(a, p, g, v0);
}

void outputs(Stream stream, const MlstmSegmentsArgs& a, bool further) {
  const int64_t heads = (further ? a.num_further : a.num_segments) * a.heads, tiles = ceil_div(a.dv, kEdge);
  launch(stream, {.grid = {heads, tiles}, .block = kTokenThreads}, segment_token_kernel, a, further);
  if (a.longest > 1)
    launch(stream, {.grid = {heads, tiles}, .block = kMlstmThreads}, segment_piece_kernel, a, further);
}

}  // namespace

void mlstm_segments(Stream stream, const MlstmSegmentsArgs& a) {
  outputs(stream, a, false);
  mlstm_segment_states(stream, a);
  outputs(stream, a, true);
}

}  // namespace trivium::TRIVIUM_GPU_NS
