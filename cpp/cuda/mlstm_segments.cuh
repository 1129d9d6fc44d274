// What the kernels of a language model's mLSTM share: the pieces of a step, each inside one chunk of 64
// positions, and the gates of a chunk.
//
// A slot holds the state at the start of the current chunk and the chunk's tokens. A token's output is the
// same sum whatever else is computed beside it: over d in runs of 64 that are added in ascending order, over
// the chunk's tokens in one run.
#pragma once

#include "cuda/mlstm.cuh"
#include "cuda/tanh.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kChunk = static_cast<int>(kMlstmSlotChunk);
static_assert(kChunk == kEdge && kMlstmSlotTile == kEdge);

// One head's memory in a slot; mlstm_slot_floats() in all.
struct HeadSlot {
  float *c, *n;  // [DQ, DV], [DQ]
  float *k,
      *v;  // [DQ, 64]: a dimension of all tokens, so that threads with a token each read neighbours; [64, DV]
  float *li, *lf;  // [64]
  float* m;        // of every tile of c
};

GPU_DEVICE HeadSlot head_slot(const MlstmSegmentsArgs& a, int64_t slot, int64_t head) {
  const int64_t keys = (a.dqk + 15) / 16 * 16, values = (a.dv + 31) / 32 * 32;
  HeadSlot s;
  s.c = a.slots + slot * a.slot_stride + head * mlstm_slot_floats(a.dqk, a.dv);
  s.n = s.c + keys * values;
  s.k = s.n + keys;
  s.v = s.k + kChunk * keys;
  s.li = s.v + kChunk * values;
  s.lf = s.li + kChunk;
  s.m = s.lf + kChunk;
  return s;
}

// Tokens [first, last) of one chunk of one head: those before `first` lie in the slot. Row r of the step is
// token r - row0.
struct Piece {
  HeadSlot slot;
  const float *c, *n;  // the state before the chunk
  float m;
  int64_t head, row0;
  int first, last;  // none when equal
  bool zero;        // the sequence starts here: c, n and m are 0 and not read
};

// The state before a further chunk: c, n, m of each head.
GPU_DEVICE float* chunk_state(const MlstmSegmentsArgs& a, int64_t entry, int64_t head) {
  const int64_t floats = a.dqk * a.dv + a.dqk + 1;
  return a.chunk_states + (entry * a.heads + head) * floats;
}

// Chunk `number` of a segment, 0 the one it begins in; `tile` says whose m a state in the slot is read by.
GPU_DEVICE Piece piece_of(const MlstmSegmentsArgs& a, const MlstmSegment& s, int64_t number, int64_t head,
                          int64_t tile) {
  const int64_t chunk = s.start / kChunk + number, begin = chunk * kChunk,
                end = static_cast<int64_t>(s.start) + s.count;
  Piece p;
  p.slot = head_slot(a, s.slot, head);
  p.head = head;
  p.row0 = s.row + begin - s.start;
  p.first = number == 0 ? static_cast<int>(s.start - begin) : 0;
  p.last = static_cast<int>(min(end - begin, static_cast<int64_t>(kChunk)));
  if (s.count == 0) p.last = p.first;
  p.zero = chunk == 0;
  const float* state = number == 0 ? nullptr : chunk_state(a, s.further + number - 1, head);
  p.c = state ? state : p.slot.c;
  p.n = state ? state + a.dqk * a.dv : p.slot.n;
  p.m = p.zero || p.last == p.first ? 0.0f : state ? state[a.dqk * a.dv + a.dqk] : p.slot.m[tile];
  return p;
}

// Piece `index` of a launch over the segments' first chunks, or over their further ones.
GPU_DEVICE Piece launched_piece(const MlstmSegmentsArgs& a, bool further, int64_t index) {
  const int64_t at = index / a.heads, head = index % a.heads;
  const MlstmSegment s = a.segments[further ? a.owners[at] : at];
  return piece_of(a, s, further ? at - s.further + 1 : 0, head, 0);
}

GPU_DEVICE float key_of(const MlstmSegmentsArgs& a, const Piece& p, int64_t l, int64_t d) {
  return l < p.first ? p.slot.k[d * kChunk + l] : a.k[(p.row0 + l) * a.stride + p.head * a.dqk + d];
}
GPU_DEVICE float value_of(const MlstmSegmentsArgs& a, const Piece& p, int64_t l, int64_t d) {
  return l < p.first ? p.slot.v[l * a.dv + d] : a.v[(p.row0 + l) * a.stride + p.head * a.dv + d];
}

// li and lf of the chunk's tokens below p.last. The caller synchronises.
GPU_DEVICE void load_gates(const MlstmSegmentsArgs& a, const Piece& p, float* li, float* lf) {
  const int l = static_cast<int>(threadIdx.x);
  if (l >= p.last) return;
  if (l < p.first) {
    li[l] = p.slot.li[l];
    lf[l] = p.slot.lf[l];
    return;
  }
  const int64_t at = (p.row0 + l) * a.gate_stride + p.head;
  const float input = soft_capped(a.i[at], a.gate_cap);
  li[l] = a.options.sigmoid_input ? log_sigmoid(input) : input;
  lf[l] = log_sigmoid(soft_capped(a.f[at], a.gate_cap));
}

// What a token's output needs of the gates: m, and the weight of the state before the chunk.
struct TokenGates {
  float *li, *lf, *m, *into;  // [64]
};

// Fills g for the tokens below p.last. All threads of the block; ends synchronised.
GPU_DEVICE void token_gates(const MlstmSegmentsArgs& a, const Piece& p, const TokenGates& g) {
  load_gates(a, p, g.li, g.lf);
  sync_block();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int l = 0; l < p.last; ++l) g.into[l] = static_cast<float>(sum += static_cast<double>(g.lf[l]));
  } else if (threadIdx.x == 64) {
    float largest = -INFINITY;
    for (int l = 0; l < p.last; ++l) g.m[l] = largest = l == 0 ? g.li[0] : max(g.lf[l] + largest, g.li[l]);
  }
  sync_block();
  const int l = static_cast<int>(threadIdx.x);
  if (l < p.last) {
    const float past = g.into[l] + p.m;
    const float m = a.options.sigmoid_input ? 0.0f : max(max(past, g.m[l]), a.options.m_floor);
    g.m[l] = m;
    g.into[l] = p.zero ? 0.0f : a.options.scale * decay(exponent_of(g.into[l], p.m, finite_m(m)));
  }
  sync_block();
}

// 1 / (den + eps) of a token with this nt and m.
GPU_DEVICE float inverse_denominator(const MlstmOptions& o, float nt, float m) {
  if (!o.normalize) return 1.0f;
  return 1.0f / ((isnan(nt) ? nt : max(abs(nt), exp(-m))) + o.eps);
}

// Keeps tokens [first, last) for the steps to come: keys and gates by the blocks of tile 0, of the values
// columns [v0, v0 + 64). Only chunks that are not full need it.
GPU_DEVICE void keep_tokens(const MlstmSegmentsArgs& a, const Piece& p, const TokenGates& g, int64_t v0) {
  if (p.last == kChunk) return;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t column = v0 + thread % kEdge;
  for (int l = p.first + thread / kEdge; l < p.last && column < a.dv; l += threads / kEdge)
    p.slot.v[l * a.dv + column] = value_of(a, p, l, column);
  if (v0 != 0) return;
  for (int l = p.first; l < p.last; ++l)
    for (int64_t d = thread; d < a.dqk; d += threads) p.slot.k[d * kChunk + l] = key_of(a, p, l, d);
  if (thread >= p.first && thread < p.last) {
    p.slot.li[thread] = g.li[thread];
    p.slot.lf[thread] = g.lf[thread];
  }
}

// mlstm_segment_states.cu: the states after the chunks that fill up in this step.
void mlstm_segment_states(Stream stream, const MlstmSegmentsArgs& a);

}  // namespace trivium::TRIVIUM_GPU_NS
