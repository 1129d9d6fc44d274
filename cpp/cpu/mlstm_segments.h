// The mLSTM of a language model's step on one CPU level, and the elementwise work around it. A slot keeps the
// state at the start of the current chunk and the chunk's tokens; the state moves on when the chunk is full.
// Included by mlstm_level.h.
#pragma once

#include "core/parallel.h"
#include "cpu/mlstm_chunk.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

static_assert(kMlstmSlotChunk == kMlstmChunk);

struct SlotHead {
  HeadState state;
  ChunkTokens tokens;
  float *li, *lf, *m;
  SlotHead(float* memory, int64_t dqk, int64_t dv) {
    Pieces pieces(memory);
    state.c = pieces.take(dqk * panel_columns(dv));
    state.n = pieces.take(dqk);
    tokens = {pieces.take(kMlstmChunk * dqk), pieces.take(kMlstmChunk * panel_columns(dv))};
    li = pieces.take(kMlstmChunk), lf = pieces.take(kMlstmChunk), m = pieces.take(1);
  }
};

TRIVIUM_INLINE float gate_value(float x, float cap) { return cap > 0 ? cap * __builtin_tanhf(x / cap) : x; }

TRIVIUM_INLINE float log_sigmoid(float x) {
  return x != x ? x : __builtin_fminf(x, 0.0f) - __builtin_log1pf(__builtin_expf(-__builtin_fabsf(x)));
}

inline void segment_head(const MlstmSegmentsArgs& a, const MlstmSegment& segment, int64_t head) {
  Pieces measure(nullptr);
  ForwardScratch::take(measure, a.dqk, a.dv);
  Pieces pieces(static_cast<float*>(thread_scratch(measure.used() * static_cast<int64_t>(sizeof(float)))));
  ForwardScratch s = ForwardScratch::take(pieces, a.dqk, a.dv);
  SlotHead slot(a.slots + segment.slot * a.slot_stride + head * mlstm_slot_floats(a.dqk, a.dv), a.dqk, a.dv);
  s.tokens = slot.tokens;
  const PanelRange range{0, num_panels(a.dv), true};
  for (int64_t done = 0; done < segment.count;) {
    const int64_t position = segment.start + done, first = position % kMlstmChunk;
    const int64_t left = segment.count - done, room = kMlstmChunk - first;
    const int64_t last = first + (left < room ? left : room);
    const int64_t row0 =
        segment.row + done - first;  // row of the chunk's first token, before this step's if first > 0
    slot.state.zero = position == first;
    slot.state.m = slot.state.zero ? 0.0f : *slot.m;
    put_tokens(a.k + row0 * a.stride + head * a.dqk, a.stride, a.v + row0 * a.stride + head * a.dv, a.stride,
               first, last, a.dqk, a.dv, range, s.row, s.tokens);
    ChunkGates g;
    for (int64_t l = first; l < last; ++l) {
      slot.li[l] = gate_value(a.i[(row0 + l) * a.gate_stride + head], a.gate_cap);
      slot.lf[l] = log_sigmoid(gate_value(a.f[(row0 + l) * a.gate_stride + head], a.gate_cap));
      copy_row(a.q + (row0 + l) * a.stride + head * a.dqk, a.dqk, s.q + (l - first) * row_pitch(a.dqk),
               a.dqk);
    }
    std::memcpy(g.li, slot.li, sizeof(float) * static_cast<size_t>(last));
    std::memcpy(g.lf, slot.lf, sizeof(float) * static_cast<size_t>(last));
    g.outputs(last, slot.state.m, a.options);
    chunk_outputs<float>(
        a.options, a.dqk, a.dv, slot.state, g, s, first, last, range,
        {a.h + ((row0 + first) * a.heads + head) * a.dv, a.heads * a.dv, nullptr, nullptr, nullptr});
    if (last == kMlstmChunk) {
      g.state(kMlstmChunk, slot.state.m, a.options);
      advance_state(a.dqk, g, s, range, slot.state, slot.state);
      *slot.m = slot.state.m;
    }
    done += last - first;
  }
}

inline void mlstm_segments(const MlstmSegmentsArgs& a) {
  parallel_for(a.num_segments * a.heads,
               [&](int64_t task, int) { segment_head(a, a.segments[task / a.heads], task % a.heads); });
}

TRIVIUM_INLINE float element_of(const VectorView& v, int64_t i) {
  if (v.dtype == Dtype::bf16) return to_float(static_cast<const bf16*>(v.data)[i]);
  if (v.dtype == Dtype::f16) return to_float(static_cast<const f16*>(v.data)[i]);
  return static_cast<const float*>(v.data)[i];
}

TRIVIUM_INLINE F32 sigmoid(F32 x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

template <class Y>
void head_norm_as(const HeadNormArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    for (int64_t head = 0; head < a.heads; ++head) {
      const float *x = a.x + (row * a.heads + head) * a.dim,
                  *gate = a.gate + row * a.gate_stride + head * a.dim;
      Y* y = static_cast<Y*>(a.y) + (row * a.heads + head) * a.dim;
      double sum = 0, squares = 0;
      for (int64_t d = 0; d < a.dim; ++d) sum += static_cast<double>(x[d]);
      const double mean = sum / static_cast<double>(a.dim);
      for (int64_t d = 0; d < a.dim; ++d)
        squares += (static_cast<double>(x[d]) - mean) * (static_cast<double>(x[d]) - mean);
      const double variance = squares / static_cast<double>(a.dim) + static_cast<double>(a.eps);
      const F32 inverse = set1(static_cast<float>(1.0 / __builtin_sqrt(variance))),
                centre = set1(static_cast<float>(mean));
      for (int64_t d = 0; d < a.dim; d += kLanes) {
        const int n = a.dim - d < kLanes ? static_cast<int>(a.dim - d) : kLanes;
        float w[kLanes] = {}, b[kLanes] = {};
        for (int i = 0; i < n; ++i) {
          w[i] = element_of(a.w, head * a.dim + d + i);
          if (a.bias.data) b[i] = element_of(a.bias, head * a.dim + d + i);
        }
        const F32 normed = mul(sub(load(x + d, n), centre), inverse);
        store_as(y + d, mul(sigmoid(load(gate + d, n)), fma(load(w), normed, load(b))), n);
      }
    }
  });
}

inline void head_norm(const HeadNormArgs& a) {
  if (a.y_dtype == Dtype::bf16)
    head_norm_as<bf16>(a);
  else
    head_norm_as<float>(a);
}

template <class Y>
void silu_mul_as(const SiluMulArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    const float *gate = a.x + row * 2 * a.dim, *up = gate + a.dim;
    Y* y = static_cast<Y*>(a.y) + row * a.dim;
    for (int64_t d = 0; d < a.dim; d += kLanes) {
      const int n = a.dim - d < kLanes ? static_cast<int>(a.dim - d) : kLanes;
      const F32 g = load(gate + d, n);
      store_as(y + d, mul(mul(g, sigmoid(g)), load(up + d, n)), n);
    }
  });
}

inline void silu_mul(const SiluMulArgs& a) {
  if (a.y_dtype == Dtype::bf16)
    silu_mul_as<bf16>(a);
  else
    silu_mul_as<float>(a);
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
