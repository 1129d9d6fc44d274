// The chunkwise forward pass on one CPU level. A task is a head, or a run of its value columns when there are
// fewer heads than threads; its state stays in the second-level cache. Included by mlstm_level.h.
#pragma once

#include "core/parallel.h"
#include "cpu/mlstm_chunk.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// Where (b, head) starts in the arrays of one call.
struct HeadPlace {
  int64_t b, head, index;  // index = b * heads + head
  HeadPlace(const MlstmSizes& s, int64_t i) : b(i / s.heads), head(i % s.heads), index(i) {}
  int64_t at(const MlstmStrides& s) const { return b * s.batch + head * s.head; }
};

// Copies between panels and row-major arrays of many heads and boundaries.
class StateArrays {
 public:
  StateArrays(const MlstmSizes& s, int64_t slots) : size_(s), slots_(slots) {}
  void load(const float* c, const float* n, const float* m, int64_t head, int64_t slot, PanelRange range,
            HeadState& to) const {
    to_panels(c + at(head, slot) * size_.dqk * size_.dv, size_.dqk, size_.dv, range.begin, range.end, to.c);
    if (n) std::memcpy(to.n, n + at(head, slot) * size_.dqk, sizeof(float) * static_cast<size_t>(size_.dqk));
    if (m) to.m = m[at(head, slot)];
    to.zero = false;
  }
  void save(const HeadState& from, int64_t head, int64_t slot, PanelRange range, float* c, float* n,
            float* m) const {
    float* matrix = c + at(head, slot) * size_.dqk * size_.dv;
    if (from.zero)
      clear_columns(matrix, range);
    else
      from_panels(from.c, size_.dqk, size_.dv, range.begin, range.end, matrix);
    if (!range.owner) return;
    if (n)
      std::memcpy(n + at(head, slot) * size_.dqk, from.n, sizeof(float) * static_cast<size_t>(size_.dqk));
    if (m) m[at(head, slot)] = from.m;
  }

 private:
  int64_t at(int64_t head, int64_t slot) const { return head * slots_ + slot; }
  void clear_columns(float* matrix, PanelRange range) const {
    const int64_t c1 = range.end * kPanel < size_.dv ? range.end * kPanel : size_.dv;
    for (int64_t d = 0; d < size_.dqk; ++d)
      for (int64_t c = range.begin * kPanel; c < c1; ++c) matrix[d * size_.dv + c] = 0;
  }
  const MlstmSizes& size_;
  int64_t slots_;
};

template <class T>
void mlstm_forward_head(const MlstmForwardArgs& a, const HeadPlace& at, PanelRange range) {
  const MlstmSizes& size = a.size;
  const int64_t dqk = size.dqk, dv = size.dv;
  const bool states = a.parts & kMlstmStates, output = a.parts & kMlstmOutput;
  const auto carve = [&](float* memory, ForwardScratch& s, HeadState& state) {
    Pieces pieces(memory);
    s = ForwardScratch::take(pieces, dqk, dv);
    state = {pieces.take(dqk * panel_columns(dv)), pieces.take(dqk), 0.0f, true};
    return pieces.used();
  };
  ForwardScratch s;
  HeadState state;
  const int64_t floats = carve(nullptr, s, state);
  carve(static_cast<float*>(thread_scratch(floats * static_cast<int64_t>(sizeof(float)))), s, state);

  std::memset(state.n, 0, sizeof(float) * static_cast<size_t>(dqk));
  const StateArrays one(size, 1), all(size, size.num_chunks() + 1);
  if (states && a.c0) one.load(a.c0, a.n0, a.m0, at.index, 0, range, state);
  const T *q = static_cast<const T*>(a.q) + at.at(a.qs), *k = static_cast<const T*>(a.k) + at.at(a.ks),
          *v = static_cast<const T*>(a.v) + at.at(a.vs);
  const int64_t gates_at = at.index * size.tokens;
  for (int64_t t = 0; t < size.tokens;) {
    if (t % size.chunk == 0) {
      if (!states) all.load(a.c_states, a.n_states, a.m_states, at.index, t / size.chunk, range, state);
      if (states && a.c_states)
        all.save(state, at.index, t / size.chunk, range, a.c_states, a.n_states, a.m_states);
    }
    // Boundaries matter only where states are read or written.
    const int64_t left = a.c_states ? size.chunk - t % size.chunk : size.tokens - t;
    const int64_t until_end = left < size.tokens - t ? left : size.tokens - t;
    const int64_t count = until_end < kMlstmChunk ? until_end : kMlstmChunk;
    ChunkGates g;
    std::memcpy(g.lf, a.lf + gates_at + t, sizeof(float) * static_cast<size_t>(count));
    std::memcpy(g.li, a.li + gates_at + t, sizeof(float) * static_cast<size_t>(count));
    put_tokens(k + t * a.ks.token, a.ks.token, v + t * a.vs.token, a.vs.token, 0, count, dqk, dv, range,
               s.row, s.tokens);
    if (output) {
      for (int64_t l = 0; l < count; ++l)
        copy_row(q + (t + l) * a.qs.token, dqk, s.q + l * row_pitch(dqk), dqk);
      g.outputs(count, state.m, a.options);
      chunk_outputs<T>(a.options, dqk, dv, state, g, s, 0, count, range,
                       {static_cast<T*>(a.h) + at.at(a.hs) + t * a.hs.token, a.hs.token,
                        a.den ? a.den + gates_at + t : nullptr, a.nt ? a.nt + gates_at + t : nullptr,
                        a.m ? a.m + gates_at + t : nullptr});
    }
    t += count;
    if (!states && (t % size.chunk == 0 || t == size.tokens)) continue;
    if (t == size.tokens && !a.c_states && !a.c_last) continue;
    g.state(count, state.m, a.options);
    advance_state(dqk, g, s, range, state, state);
  }
  if (states && a.c_states)
    all.save(state, at.index, size.num_chunks(), range, a.c_states, a.n_states, a.m_states);
  if (states && a.c_last) one.save(state, at.index, 0, range, a.c_last, a.n_last, a.m_last);
}

inline void mlstm_forward(const MlstmForwardArgs& a) {
  const int64_t heads = a.size.batch * a.size.heads, panels = num_panels(a.size.dv), threads = num_threads();
  if (heads == 0) return;
  const int64_t wanted = heads >= threads ? 1 : (threads + heads - 1) / heads;
  const int64_t runs = wanted < panels ? wanted : panels;
  parallel_for(heads * runs, [&](int64_t task, int) {
    const int64_t run = task % runs;
    const PanelRange range{panels * run / runs, panels * (run + 1) / runs, run == 0};
    const HeadPlace at(a.size, task / runs);
    if (a.dtype == Dtype::f32)
      mlstm_forward_head<float>(a, at, range);
    else if (a.dtype == Dtype::bf16)
      mlstm_forward_head<bf16>(a, at, range);
    else
      mlstm_forward_head<f16>(a, at, range);
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
