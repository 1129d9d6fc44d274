// The states after the chunks that fill up in a step: C' = keep C + (diag(out_of) K)^T V, n' likewise.
#include "cuda/mlstm_segments.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// out_of[l] = li_l + sum of lf after l, and the m after the chunk; `keep` is the state's own weight.
struct ChunkWeights {
  float m, keep;
};

GPU_DEVICE ChunkWeights chunk_weights(const MlstmSegmentsArgs& a, const Piece& p, float before, float* li,
                                      float* lf, float* out_of, float* result) {
  load_gates(a, p, li, lf);
  sync_block();
  if (threadIdx.x == 0) {
    double whole = 0;  // as in mlstm_gates.cu
    float top = -INFINITY;
    for (int l = kChunk - 1; l >= 0; --l) {
      out_of[l] = static_cast<float>(whole + static_cast<double>(li[l]));
      top = max(top, out_of[l]);
      whole += static_cast<double>(lf[l]);
    }
    const auto sum = static_cast<float>(whole);
    const float after = a.options.sigmoid_input ? 0.0f : max(sum + before, top);
    result[0] = after;
    result[1] = decay(exponent_of(sum, before, finite_m(after)));
  }
  sync_block();
  const ChunkWeights w{result[0], result[1]};
  const int l = static_cast<int>(threadIdx.x);
  if (l < kChunk) out_of[l] = decay(out_of[l] - finite_m(w.m));
  sync_block();
  return w;
}

// A block carries 64 x 64 of C of one head through all full chunks of one segment. Blocks of the first
// columns carry n too.
GPU_KERNEL(kMlstmThreads, 3)
void segment_states_kernel(MlstmSegmentsArgs a) {
  GPU_SHARED(float, shared, Operands<float>::kCount);
  GPU_SHARED(float, li, kChunk);
  GPU_SHARED(float, lf, kChunk);
  GPU_SHARED(float, out_of, kChunk);
  GPU_SHARED(float, result, 2);
  const int64_t head = blockIdx.x % a.heads, tile = static_cast<int64_t>(blockIdx.y) * gridDim.z + blockIdx.z;
  const MlstmSegment s = a.segments[blockIdx.x / a.heads];
  const int64_t chunks = mlstm_further_chunks(s.start, s.count) + 1;
  Piece p = piece_of(a, s, 0, head, tile);
  if (p.first == p.last || p.last < kChunk) return;
  const HeadSlot slot = p.slot;
  const int64_t d0 = static_cast<int64_t>(blockIdx.y) * kEdge, v0 = static_cast<int64_t>(blockIdx.z) * kEdge;
  const int64_t n_at = d0 + threadIdx.x;
  const bool owns_n = blockIdx.z == 0 && threadIdx.x < kEdge && n_at < a.dqk;
  BlockAcc<float> c;
  c.for_each([&](int r, int col, float& x) {
    x = !p.zero && d0 + r < a.dqk && v0 + col < a.dv ? slot.c[(d0 + r) * a.dv + v0 + col] : 0.0f;
  });
  float n = owns_n && !p.zero ? slot.n[n_at] : 0.0f, m = p.m;
  const auto store = [&](float* to_c, float* to_n) {
    c.for_each([&](int r, int col, float& x) {
      if (d0 + r < a.dqk && v0 + col < a.dv) to_c[(d0 + r) * a.dv + v0 + col] = x;
    });
    if (owns_n) to_n[n_at] = n;
  };
  for (int64_t number = 0;;) {
    const ChunkWeights w = chunk_weights(a, p, m, li, lf, out_of, result);
    c.for_each([&](int, int, float& x) { x *= w.keep; });
    const auto keys = [&](int r, int64_t l) {
      return d0 + r < a.dqk ? out_of[l] * key_of(a, p, l, d0 + r) : 0.0f;
    };
    const auto values = [&](int r, int64_t l) { return v0 + r < a.dv ? value_of(a, p, l, v0 + r) : 0.0f; };
    add_product<float>(c, kChunk, shared, Along::rows, keys, Along::rows, values);
    float more = 0;
#pragma unroll 2
    for (int l = 0; owns_n && l < kChunk; ++l) more = fma(out_of[l], key_of(a, p, l, n_at), more);
    n = fma(n, w.keep, more);
    m = w.m;
    sync_block();  // the weights have been read
    if (++number == chunks) break;
    float* state = chunk_state(a, s.further + number - 1, head);
    store(state, state + a.dqk * a.dv);
    if (tile == 0 && threadIdx.x == 0) state[a.dqk * a.dv + a.dqk] = m;
    p = piece_of(a, s, number, head, tile);
    if (p.last < kChunk) break;
  }
  store(slot.c, slot.n);
  if (threadIdx.x == 0) slot.m[tile] = m;
}

}  // namespace

void mlstm_segment_states(Stream stream, const MlstmSegmentsArgs& a) {
  launch(stream,
         {.grid = {a.num_segments * a.heads, ceil_div(a.dqk, kEdge), ceil_div(a.dv, kEdge)},
          .block = kMlstmThreads},
         segment_states_kernel, a);
}

}  // namespace trivium::TRIVIUM_GPU_NS
