// The chunkwise backward pass on one CPU level: a task is a head. States are computed again run by run, at
// most kSegmentRuns of them kept at a time, then the runs are visited from the last to the first. Included by
// mlstm_level.h.
#pragma once

#include <vector>

#include "cpu/mlstm_backward_chunk.h"
#include "cpu/mlstm_forward.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

inline constexpr int64_t kSegmentRuns =
    32;  // 2048 tokens: bounds the memory, costs one more pass over the states

template <class T>
class BackwardHead {
 public:
  BackwardHead(const MlstmBackwardArgs& a, int64_t index)
      : a_(a),
        at_(a.size, index),
        dqk_(a.size.dqk),
        dv_(a.size.dv),
        states_(a.size, a.c_slots),
        gradients_(a.size, a.size.num_chunks() + 1 - a.dc_first),
        one_(a.size, 1),
        range_{0, num_panels(a.size.dv), true} {}

  void run() {
    find_runs();
    const int64_t floats = carve(nullptr);
    carve(static_cast<float*>(thread_scratch(floats * static_cast<int64_t>(sizeof(float)))));
    start_gradient();
    if (needs_states()) keep_checkpoints();
    for (size_t s = segments_.size(); s-- > 0;) {
      const Segment& segment = segments_[s];
      if (needs_states()) fill_segment(s);
      for (int64_t r = segment.last; r-- > segment.first;)
        backward_run(r, slots_[needs_states() ? static_cast<size_t>(r - segment.first) : 0]);
    }
    finish();
  }

 private:
  struct Run {
    int64_t begin, count;
    float m, m_after;  // of the states around it
  };
  struct Segment {
    int64_t first, last;  // runs
  };

  bool output() const { return a_.parts & kMlstmOutput; }
  bool computes_dc() const { return a_.parts & kMlstmStates; }
  bool needs_states() const { return output(); }
  bool at_boundary(int64_t t) const { return t % a_.size.chunk == 0 || t == a_.size.tokens; }
  int64_t boundary(int64_t t) const { return (t + a_.size.chunk - 1) / a_.size.chunk; }

  void find_runs() {
    const bool boundaries = a_.c_states || a_.dc_states || a_.m_states;
    float m = a_.options.sigmoid_input ? 0.0f
              : a_.m_states            ? a_.m_states[all_at(0)]
              : a_.m0                  ? a_.m0[at_.index]
                                       : 0.0f;
    for (int64_t t = 0; t < a_.size.tokens;) {
      const int64_t left = boundaries ? a_.size.chunk - t % a_.size.chunk : a_.size.tokens - t;
      const int64_t until_end = left < a_.size.tokens - t ? left : a_.size.tokens - t;
      const int64_t count = until_end < kMlstmChunk ? until_end : kMlstmChunk;
      const bool starts = a_.c_states ? at_boundary(t) : runs_.size() % kSegmentRuns == 0;
      const auto index = static_cast<int64_t>(runs_.size());
      if (starts) segments_.push_back({index, index});
      runs_.push_back({t, count, m, 0});
      segments_.back().last = index + 1;
      t += count;
      m = runs_.back().m_after = m_after(runs_.back());
    }
  }
  float m_after(const Run& run) const {
    const int64_t end = run.begin + run.count;
    if (a_.options.sigmoid_input) return 0;
    if (a_.m_states && at_boundary(end)) return a_.m_states[all_at(boundary(end))];
    // Any m serves inside a chunk as long as both sides use it; this one needs no input gate.
    if (!needs_states()) return a_.m[at_.index * a_.size.tokens + end - 1];
    ChunkGates g;
    read_gates(run, g);
    g.state(run.count, run.m, a_.options);
    return g.m_after;
  }
  int64_t all_at(int64_t k) const { return at_.index * (a_.size.num_chunks() + 1) + k; }

  int64_t carve(float* memory) {
    Pieces pieces(memory);
    s_ = BackwardScratch::take(pieces, dqk_, dv_);
    f_ = ForwardScratch::take(pieces, dqk_, dv_);
    const auto state = [&] {
      return HeadState{pieces.take(dqk_ * panel_columns(dv_)), pieces.take(dqk_), 0.0f, true};
    };
    dc_ = state();
    int64_t most = 0;
    for (const Segment& segment : segments_)
      most = segment.last - segment.first > most ? segment.last - segment.first : most;
    if (!needs_states()) most = 1;
    slots_.clear(), checkpoints_.clear();
    for (int64_t i = 0; i < most; ++i) slots_.push_back(state());
    if (needs_states() && !a_.c_states)
      for (size_t i = 1; i < segments_.size(); ++i) checkpoints_.push_back(state());
    zeros_ = pieces.take(dqk_ > kMlstmChunk ? dqk_ : kMlstmChunk);
    if (memory)
      for (int64_t d = 0; d < dqk_; ++d) zeros_[d] = dc_.n[d] = slots_[0].n[d] = 0;
    return pieces.used();
  }

  void read_gates(const Run& run, ChunkGates& g) const {
    const int64_t from = at_.index * a_.size.tokens + run.begin;
    std::memcpy(g.lf, a_.lf + from, sizeof(float) * static_cast<size_t>(run.count));
    std::memcpy(g.li, a_.li + from, sizeof(float) * static_cast<size_t>(run.count));
  }
  const T* at(const void* base, const MlstmStrides& strides, const Run& run) const {
    return static_cast<const T*>(base) + at_.at(strides) + run.begin * strides.token;
  }

  void start_gradient() {
    const int64_t last = a_.size.num_chunks();
    dc_.zero = true;
    if (computes_dc()) {
      if (a_.dc_last) {
        to_panels(a_.dc_last + at_.index * dqk_ * dv_, dqk_, dv_, 0, range_.end, dc_.c);
        dc_.zero = false;
      }
      if (a_.dn_last && a_.exact)
        std::memcpy(dc_.n, a_.dn_last + at_.index * dqk_, sizeof(float) * static_cast<size_t>(dqk_));
      if (a_.dc_states) save_gradient(last);
    }
  }
  void save_gradient(int64_t slot) {
    if (slot >= a_.dc_first)
      gradients_.save(dc_, at_.index, slot - a_.dc_first, range_, a_.dc_states, a_.dn_states, nullptr);
  }

  // The state before the first run of each segment but the first.
  void keep_checkpoints() {
    if (a_.c_states || segments_.size() < 2) return;
    HeadState state = slots_[0];
    load_initial(state);
    for (size_t s = 0; s + 1 < segments_.size(); ++s) {
      for (int64_t r = segments_[s].first; r < segments_[s].last; ++r) {
        HeadState& to = r + 1 == segments_[s].last ? checkpoints_[s] : state;
        advance(runs_[static_cast<size_t>(r)], state, to);
      }
      std::memcpy(state.c, checkpoints_[s].c, sizeof(float) * static_cast<size_t>(dqk_ * panel_columns(dv_)));
      std::memcpy(state.n, checkpoints_[s].n, sizeof(float) * static_cast<size_t>(dqk_));
      state.zero = false;
    }
  }
  void load_initial(HeadState& state) const {
    state.zero = !a_.c0;
    if (a_.c0) one_.load(a_.c0, a_.n0, a_.m0, at_.index, 0, range_, state);
  }
  void advance(const Run& run, const HeadState& from, HeadState& to) {
    ChunkGates g;
    read_gates(run, g);
    g.state(run.count, run.m, a_.options, &run.m_after);
    put_tokens(at(a_.k, a_.ks, run), a_.ks.token, at(a_.v, a_.vs, run), a_.vs.token, 0, run.count, dqk_, dv_,
               range_, f_.row, f_.tokens);
    advance_state(dqk_, g, f_, range_, from, to);
  }
  void fill_segment(size_t s) {
    const Segment& segment = segments_[s];
    HeadState& first = slots_[0];
    if (a_.c_states) {
      const Run& run = runs_[static_cast<size_t>(segment.first)];
      states_.load(a_.c_states, a_.n_states, nullptr, at_.index, boundary(run.begin), range_, first);
    } else if (s == 0) {
      load_initial(first);
    } else {
      const HeadState& from = checkpoints_[s - 1];
      std::memcpy(first.c, from.c, sizeof(float) * static_cast<size_t>(dqk_ * panel_columns(dv_)));
      std::memcpy(first.n, from.n, sizeof(float) * static_cast<size_t>(dqk_));
      first.zero = false;
    }
    for (int64_t r = segment.first; r + 1 < segment.last; ++r) {
      const auto i = static_cast<size_t>(r - segment.first);
      advance(runs_[static_cast<size_t>(r)], slots_[i], slots_[i + 1]);
    }
  }

  // Rows of q, G and, for the outputs, k and v, in the forms the products need.
  void read_rows(const Run& run, const ChunkGates& g, const ChunkGradients& c) {
    const T *q = at(a_.q, a_.qs, run), *dh = at(a_.dh, a_.dhs, run);
    const int64_t pitch = row_pitch(dqk_), wide = row_pitch(dv_);
    for (int64_t l = 0; l < run.count; ++l) {
      copy_row(q + l * a_.qs.token, dqk_, s_.q + l * pitch, dqk_);
      for (int64_t d = 0; d < dqk_; ++d)
        s_.queries[l * pitch + d] = a_.options.scale * g.into[l] * s_.q[l * pitch + d];
      copy_row(dh + l * a_.dhs.token, dv_, s_.row, panel_columns(dv_));
      const float inverse = a_.options.normalize ? 1.0f / (c.den[l] + a_.options.eps) : 1.0f;
      for (int64_t d = 0; d < panel_columns(dv_); ++d) s_.row[d] *= inverse;
      put_row(s_.row, dv_, l, kMlstmChunk, s_.g_panels);
      std::memcpy(s_.g + l * wide, s_.row, sizeof(float) * static_cast<size_t>(dv_));
    }
    if (!output()) return;
    const T *k = at(a_.k, a_.ks, run), *v = at(a_.v, a_.vs, run);
    for (int64_t l = 0; l < run.count; ++l) {
      copy_row(k + l * a_.ks.token, dqk_, s_.k + l * pitch, dqk_);
      copy_row(v + l * a_.vs.token, dv_, s_.v + l * wide, dv_);
    }
    put_transposed(s_.q, pitch, dqk_, 0, run.count, s_.qt);
    put_transposed(s_.k, pitch, dqk_, 0, run.count, s_.kt);
    put_transposed(s_.v, wide, dv_, 0, run.count, s_.vt);
    put_transposed(s_.g, wide, dv_, 0, run.count, s_.gt);
  }

  void backward_run(int64_t index, const HeadState& state) {
    const Run& run = runs_[static_cast<size_t>(index)];
    const int64_t end = run.begin + run.count, gate = at_.index * a_.size.tokens + run.begin;
    ChunkGates g;
    ChunkGradients c{};
    read_gates(run, g);
    g.outputs(run.count, run.m, a_.options, a_.m + gate);
    g.state(run.count, run.m, a_.options, &run.m_after);
    std::memcpy(c.den, a_.den + gate, sizeof(float) * static_cast<size_t>(run.count));
    c.exact = a_.exact, c.has_nt = a_.nt;
    if (a_.nt) std::memcpy(c.nt, a_.nt + gate, sizeof(float) * static_cast<size_t>(run.count));
    if (!computes_dc() && at_boundary(end)) load_gradient(boundary(end));
    read_rows(run, g, c);
    if (output())
      output_gradients(run, state, g, c);
    else if (a_.exact)
      denominator_path(run, g, c);
    if (!computes_dc() && at_boundary(run.begin)) return;
    advance_gradient(g, c);
    if (computes_dc() && a_.dc_states && at_boundary(run.begin)) save_gradient(boundary(run.begin));
  }
  void load_gradient(int64_t slot) {
    gradients_.load(a_.dc_states, a_.dn_states, nullptr, at_.index, slot - a_.dc_first, range_, dc_);
  }

  // c.e from h, where the outputs' products do not give it.
  void denominator_path(const Run& run, const ChunkGates& g, ChunkGradients& c) const {
    const T* h = static_cast<const T*>(a_.h) + (at_.index * a_.size.tokens + run.begin) * dv_;
    const int64_t wide = row_pitch(dv_);
    for (int64_t l = 0; l < run.count; ++l) {
      copy_row(h + l * dv_, dv_, s_.row, dv_);
      const bool active = a_.options.normalize && __builtin_fabsf(c.nt[l]) >= __builtin_expf(-g.m[l]);
      c.e[l] = active ? (c.nt[l] > 0 ? -1.0f : 1.0f) * dot_floats(s_.g + l * wide, s_.row, dv_) : 0.0f;
    }
  }

  void output_gradients(const Run& run, const HeadState& state, const ChunkGates& g, ChunkGradients& c) {
    const MlstmOptions& o = a_.options;
    const int64_t n = run.count, pitch = row_pitch(dqk_), gate = at_.index * a_.size.tokens + run.begin;
    alignas(64) float past_dot[kMlstmChunk] = {}, past_nt[kMlstmChunk] = {}, factors[kMlstmChunk] = {},
                      ones[kMlstmChunk];
    multiply_pairs(s_.k, pitch, s_.qt, dqk_, n, s_.pt);
    multiply_pairs(s_.v, row_pitch(dv_), s_.gt, dv_, n, s_.dpt);
    if (!state.zero) {
      multiply_transposed(state.c, s_.gt, dqk_, dv_, n, s_.dqt);
      dot_columns(s_.qt, s_.dqt, dqk_, n, past_dot);
      for (int64_t l = 0; l < n; ++l) past_nt[l] = dot_floats(s_.q + l * pitch, state.n, dqk_);
    } else {
      std::memset(s_.dqt, 0, sizeof(float) * static_cast<size_t>(kMlstmChunk * dqk_));
    }
    pair_gradients(o, g, past_dot, past_nt, s_, c);
    const auto with_dots = [&](const float* x, const float* y, auto&& add) {
      alignas(64) float dots[kMlstmChunk];
      dot_columns(x, y, dqk_, n, dots);
      add(dots);
    };
    for (int64_t l = 0; l < n; ++l) factors[l] = o.scale * g.into[l];
    scale_columns(s_.dqt, dqk_, n, factors, state.zero ? zeros_ : state.n, c.e);
    with_dots(s_.qt, s_.dqt, [&](const float* dots) {
      float sum = 0;
      for (int64_t l = n; l-- > 0;) c.dlf[l] += sum += dots[l];
    });
    add_pair_product(
        s_.k, pitch, s_.dst, dqk_, n,
        [&](int64_t l) {
          return Terms{0, l + kPanel < n ? l + kPanel : n};
        },
        s_.dqt);
    store_transposed(s_.dqt, dqk_, n, s_.row, static_cast<T*>(a_.dq) + gate * dqk_);

    if (dc_.zero)
      std::memset(s_.dkt, 0, sizeof(float) * static_cast<size_t>(kMlstmChunk * dqk_));
    else
      multiply_transposed(dc_.c, s_.vt, dqk_, dv_, n, s_.dkt);
    for (int64_t l = 0; l < n; ++l) factors[l] = g.out_of[l], ones[l] = 1;
    scale_columns(s_.dkt, dqk_, n, factors, dc_.n, ones);
    with_dots(s_.kt, s_.dkt, [&](const float* dots) {
      float sum = 0;
      for (int64_t l = 0; l < n; ++l) c.dlf[l] += sum, sum += dots[l], c.dli[l] += dots[l];
    });
    add_pair_product(
        s_.q, pitch, s_.ds, dqk_, n,
        [&](int64_t j) {
          return Terms{j, n};
        },
        s_.dkt);
    store_transposed(s_.dkt, dqk_, n, s_.row, static_cast<T*>(a_.dk) + gate * dqk_);
    value_gradients(g, s_, dqk_, dv_, dc_.c, dc_.zero, static_cast<T*>(a_.dv) + gate * dv_);
    gate_gradients(g, c, state, gate);
  }

  void gate_gradients(const ChunkGates& g, const ChunkGradients& c, const HeadState& state, int64_t gate) {
    float kept = 0;
    if (!state.zero) {
      if (!dc_.zero) kept = dot_floats(state.c, dc_.c, dqk_ * panel_columns(dv_));
      kept = g.keep * (kept + dot_floats(state.n, dc_.n, dqk_));
    }
    for (int64_t l = 0; l < g.count; ++l) {
      const bool pre = a_.preactivation;  // 1 - sigmoid(x) from log sigmoid(x)
      a_.df[gate + l] = (c.dlf[l] + kept) * (pre ? -__builtin_expm1f(g.lf[l]) : 1.0f);
      a_.di[gate + l] = c.dli[l] * (pre && a_.options.sigmoid_input ? -__builtin_expm1f(g.li[l]) : 1.0f);
    }
  }

  // dC and dn of the state before the run.
  void advance_gradient(const ChunkGates& g, const ChunkGradients& c) {
    const F32 keep = set1(g.keep);
    const int64_t pitch = row_pitch(dqk_);
    for (int64_t panel = 0; panel < range_.end; ++panel)
      for_row_tiles(dqk_, [&]<int kRows>(int64_t d) {
        float* place = dc_.c + (panel * dqk_ + d) * kPanel;
        TileAcc<kRows> acc;
        acc.clear();
        if (!dc_.zero) {
#pragma GCC unroll kMlstmUnroll
          for (int i = 0; i < kRows; ++i) {
            acc.load_row(i, place + i * kPanel);
            acc.x[i][0] = mul(acc.x[i][0], keep), acc.x[i][1] = mul(acc.x[i][1], keep);
          }
        }
        acc.add_product(s_.queries + d, 1, pitch, s_.g_panels + panel * kMlstmChunk * kPanel, g.count);
#pragma GCC unroll kMlstmUnroll
        for (int i = 0; i < kRows; ++i) acc.store_row(i, place + i * kPanel);
      });
    dc_.zero = false;
    if (!a_.exact) return;
    for (int64_t d = 0; d < dqk_; ++d) {
      float sum = g.keep * dc_.n[d];
      for (int64_t l = 0; l < g.count; ++l) sum += s_.queries[l * pitch + d] * c.e[l];
      dc_.n[d] = sum;
    }
  }

  void finish() {
    if (!computes_dc() || !a_.dc0) return;
    one_.save(dc_, at_.index, 0, range_, a_.dc0, a_.dn0, nullptr);
    double dm = 0;
    if (a_.exact && a_.c0) {
      const float *c = a_.c0 + at_.index * dqk_ * dv_, *dc = a_.dc0 + at_.index * dqk_ * dv_;
      for (int64_t i = 0; i < dqk_ * dv_; ++i) dm += static_cast<double>(c[i]) * static_cast<double>(dc[i]);
      for (int64_t d = 0; d < dqk_; ++d)
        dm += static_cast<double>(a_.n0[at_.index * dqk_ + d]) * static_cast<double>(dc_.n[d]);
    }
    a_.dm0[at_.index] = static_cast<float>(dm);
  }

  const MlstmBackwardArgs& a_;
  const HeadPlace at_;
  const int64_t dqk_, dv_;
  const StateArrays states_, gradients_, one_;
  const PanelRange range_;
  std::vector<Run> runs_;
  std::vector<Segment> segments_;
  std::vector<HeadState> slots_, checkpoints_;
  BackwardScratch s_;
  ForwardScratch f_;
  HeadState dc_;
  float* zeros_ = nullptr;
};

inline void mlstm_backward(const MlstmBackwardArgs& a) {
  parallel_for(a.size.batch * a.size.heads, [&](int64_t head, int) {
    if (a.dtype == Dtype::f32)
      BackwardHead<float>(a, head).run();
    else if (a.dtype == Dtype::bf16)
      BackwardHead<bf16>(a, head).run();
    else
      BackwardHead<f16>(a, head).run();
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
