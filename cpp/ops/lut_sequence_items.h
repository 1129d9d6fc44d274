// Items of the sequential (causal pair) kernels; see lut_items.h.
#pragma once

#include "ops/lut_items.h"

namespace trivium::lut {

TRIVIUM_INLINE int32_t pair_cell(const LutSequence& s, int32_t q, int32_t k, int32_t e) {
  return q << (s.num_anchors + s.num_pe) | k << s.num_pe | e;
}

// Row of the [batch, length, Nt] arrays.
TRIVIUM_INLINE int64_t detector_at(const LutSequence& s, int64_t num_tables, int64_t b, int64_t position,
                                   int64_t t) {
  return (b * s.length + position) * num_tables + t;
}

TRIVIUM_INLINE int32_t cell_at(const LutSequence& s, int64_t num_tables, int64_t b, int64_t i, int64_t j,
                               int64_t t) {
  const int32_t e = s.num_pe ? s.pe_index[(j - i - 1) * num_tables + t] : 0;
  return pair_cell(s, s.index[detector_at(s, num_tables, b, j, t)],
                   s.index[detector_at(s, num_tables, b, i, t)], e);
}

// What the pairs of one table give to one output of position j. cell_of(i) is the address of pair i < j. A
// fully connected sum is one contribution. place: as in LutReach.
template <bool fixed, class Cell>
TRIVIUM_INLINE Sum<fixed> pairs_sum(const LutTable& w, const LutNumerics& numerics, int64_t t, int64_t place,
                                    int64_t o, int64_t first, int64_t j, const Cell& cell_of) {
  Sum<fixed> sum = 0;
  if (w.form != LutForm::fully_connected) {
    for (int64_t i = first; i < j; ++i)
      add_synapses<fixed>(w, row_of(w, t, cell_of(i)), o, place, numerics, sum);
    return sum;
  }
  Real<fixed> part = 0;
  for (int64_t i = first; i < j; ++i)
    part += Real<fixed>(w.weights[(t * w.cells + cell_of(i)) * w.outputs + o]);
  return contribution<fixed>(part, numerics);
}

// item = (b * length + j) * O + o
template <bool fixed>
TRIVIUM_INLINE void fill_outputs_for_sequence_item(const LutSequenceForwardArgs& a, int64_t item) {
  const auto [row, o] = split(item, a.table.outputs);
  const LutSequence& s = a.sequence;
  const int64_t j = split(row, s.length).remainder;
  const int64_t num_tables = a.table.num_tables;
  const int32_t* index = s.index + (row - j) * num_tables;  // of position 0
  Sum<fixed> sum = 0;
  for_tables_of(a.table, o, [&](int64_t t, int64_t place) {
    sum += pairs_sum<fixed>(a.table, a.numerics, t, place, o, 0, j, [&](int64_t i) {
      const int32_t e = s.num_pe ? s.pe_index[(j - i - 1) * num_tables + t] : 0;
      return pair_cell(s, index[j * num_tables + t], index[i * num_tables + t], e);
    });
  });
  a.y[item] = value_of(sum, a.numerics);
}

// The alternatives of one pair: which detector is least certain.
struct PairFlip {
  bool any_x, q_side;  // a detector flips: that of the later position, else the earlier one
  bool pe;             // the positional embedding flips, in addition
};

TRIVIUM_INLINE PairFlip pair_flip(int32_t rq, float uq, int32_t rk, float uk, int32_t re, float ue) {
  constexpr float kNever = __builtin_huge_valf();
  const float mq = rq < 0 ? kNever : magnitude(uq), mk = rk < 0 ? kNever : magnitude(uk), me = magnitude(ue);
  PairFlip f;
  // Without short cuts: which detector flips is a coin toss that branches would guess wrong.
  f.q_side = (rq >= 0) & ((mq < mk) | (rk < 0));
  f.any_x = f.q_side | (rk >= 0);
  f.pe = (re >= 0) & ((!f.any_x) | ((me < mq) & (me < mk)));
  return f;
}

// What the input gradient needs of one pair.
struct PairPlan {
  int32_t cell;    // the addressed row
  int32_t bit;     // the address bit that flips, 0: none
  int32_t pe_bit;  // the one that flips in addition for the embedding, 0: none
  float u, pe_u;   // their differences
  bool q_side;     // bit belongs to the later position
};

TRIVIUM_INLINE PairPlan plan_pair(const LutSequence& s, int64_t num_tables, int64_t b, int64_t i, int64_t j,
                                  int64_t t) {
  const int64_t at_q = detector_at(s, num_tables, b, j, t), at_k = detector_at(s, num_tables, b, i, t);
  const int64_t at_e = (j - i - 1) * num_tables + t;
  const int32_t rq = s.min_index[at_q], rk = s.min_index[at_k], re = s.num_pe ? s.pe_min_index[at_e] : -1;
  const float uq = s.min_delta[at_q], uk = s.min_delta[at_k], ue = s.num_pe ? s.pe_min_delta[at_e] : 0;
  const PairFlip flip = pair_flip(rq, uq, rk, uk, re, ue);
  const int shift = flip.q_side ? rq + s.num_anchors + s.num_pe : rk + s.num_pe;
  return {pair_cell(s, s.index[at_q], s.index[at_k], s.num_pe ? s.pe_index[at_e] : 0),
          flip.any_x ? 1 << shift : 0,
          flip.pe ? 1 << re : 0,
          flip.q_side ? uq : uk,
          ue,
          flip.q_side};
}

// Sums of owner (b, t); position s of delta is delta[s * stride].
template <bool fixed>
struct PairSums {
  Sum<fixed>* delta;     // of (b, position 0, t)
  Sum<fixed>* pe_delta;  // of (b, distance 1, t), or null
  int64_t stride;        // Nt
  Sum<fixed> later;      // flips of the later position, which is the same for a run of pairs

  // Of the threads that call it together one is the writer.
  template <class Dot>
  TRIVIUM_INLINE void add(const PairPlan& plan, int64_t i, int64_t j, const LutNumerics& numerics,
                          bool writer, const Dot& dot_of) {
    const Real<fixed> main = dot_of(plan.cell);
    if (plan.bit) {
      const Sum<fixed> v =
          delta_of<fixed>(main, dot_of(plan.cell ^ plan.bit), plan.u, plan.cell & plan.bit, numerics);
      if (plan.q_side)
        later += v;
      else if (writer)
        delta[i * stride] += v;
    }
    if (plan.pe_bit) {
      const Sum<fixed> v = delta_of<fixed>(main, dot_of(plan.cell ^ plan.pe_bit), plan.pe_u,
                                           plan.cell & plan.pe_bit, numerics);
      if (writer) pe_delta[(j - i - 1) * stride] += v;
    }
  }
};

template <bool fixed>
TRIVIUM_INLINE PairSums<fixed> pair_sums(const LutSequence& s, int64_t num_tables, int64_t b, int64_t t,
                                         void* delta, void* pe_delta, bool writer) {
  const int64_t distances = s.length - 1;
  PairSums<fixed> sums{static_cast<Sum<fixed>*>(delta) + b * s.length * num_tables + t, nullptr, num_tables,
                       0};
  if (!s.num_pe) return sums;
  sums.pe_delta = static_cast<Sum<fixed>*>(pe_delta) + b * distances * num_tables + t;
  for (int64_t d = 0; writer && d < distances; ++d) sums.pe_delta[d * num_tables] = 0;
  return sums;
}

// Owner of (b, t): sums what flips at each position and distance. dot(j, cell) = W[t, cell] . gy[b, j].
template <bool fixed, class Dot>
TRIVIUM_INLINE void sequence_deltas(const LutSequence& s, const LutNumerics& numerics, int64_t num_tables,
                                    int64_t b, int64_t t, void* delta, void* pe_delta, bool writer,
                                    const Dot& dot_of) {
  PairSums<fixed> sums = pair_sums<fixed>(s, num_tables, b, t, delta, pe_delta, writer);
  for (int64_t j = 0; j < s.length; ++j) {
    sums.later = 0;
    for (int64_t i = 0; i < j; ++i)
      sums.add(plan_pair(s, num_tables, b, i, j, t), i, j, numerics, writer,
               [&](int32_t cell) { return dot_of(j, cell); });
    if (writer) sums.delta[j * num_tables] = sums.later;  // positions after j add their flips of this one
  }
}

// item = d * Nt + t (unified: d): one embedding row. Rows past the distances in use get zeros.
template <bool fixed>
TRIVIUM_INLINE void gather_pe_gradients_item(const LutPeGradientArgs& a, int64_t item) {
  const Split at = split(item, a.num_tables);
  const int64_t d = a.unified ? item : at.quotient;
  const int64_t t0 = a.unified ? 0 : at.remainder, t1 = a.unified ? a.num_tables : t0 + 1;
  float* out = a.gpe + item * a.num_pe;
  const auto* delta = static_cast<const Sum<fixed>*>(a.pe_delta);
  for (int64_t r = 0; r < a.num_pe; ++r) {
    Sum<fixed> sum = 0;
    for (int64_t t = t0; t < t1 && d < a.distances; ++t) {
      if (a.pe_min_index[d * a.num_tables + t] != r) continue;
      for (int64_t b = 0; b < a.batch; ++b) sum += delta[(b * a.distances + d) * a.num_tables + t];
    }
    out[r] = value_of(sum, a.numerics);
  }
}

// The owner's cells are those of later-position indices [first_cell, last_cell) >> (Nc + Npe).
template <bool fixed>
TRIVIUM_INLINE void gather_w_gradients_for_sequence_item(const LutSequenceWGradientArgs& a,
                                                         const WOwner& owner) {
  const LutSequence& s = a.sequence;
  const int64_t num_tables = a.table.num_tables;
  const int shift = s.num_anchors + s.num_pe;
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, true);
  const int64_t first = owner.first_cell >> shift, last = owner.last_cell >> shift;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t j = 1; j < s.length; ++j) {
      const int64_t row = b * s.length + j, q = s.index[row * num_tables + owner.t];
      if (q < first || q >= last) continue;
      for (int64_t i = 0; i < j; ++i)
        add_w_gradient<fixed>(a.table, a.target, a.numerics, owner, cell_at(s, num_tables, b, i, j, owner.t),
                              a.gy + row * a.table.outputs, 1);
    }
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, false);
}

// item = row * Nt + t: the row's index joins its slot's ring.
TRIVIUM_INLINE void remember_item(const LutDecodeArgs& a, int64_t item) {
  const auto [row, t] = split(item, a.table.num_tables);
  const int64_t place = a.slots[row] * a.ring + a.positions[row] % a.ring;
  a.cache[place * a.table.num_tables + t] = a.index[item];
}

// What a row sees of its slot's ring: positions [first, position), of which i lies at i + offset, or one ring
// before that from `turn` on.
struct DecodeRow {
  const int32_t* index;  // [Nt] of the row's own position
  int64_t first, position, offset, turn;
};
TRIVIUM_INLINE DecodeRow decode_row(const LutDecodeArgs& a, int64_t row) {
  const int64_t j = a.positions[row], first = j < a.window ? 0 : j - a.window;
  const int64_t start = split(first, a.ring).quotient * a.ring;
  return {a.index + row * a.table.num_tables, first, j, a.slots[row] * a.ring - start, start + a.ring};
}

TRIVIUM_INLINE int32_t decode_cell(const LutDecodeArgs& a, const DecodeRow& row, int64_t i, int64_t t) {
  const int64_t num_tables = a.table.num_tables;
  const int64_t place = row.offset + (i < row.turn ? i : i - a.ring);
  const int32_t k = a.cache[place * num_tables + t];
  const int32_t e = a.num_pe ? a.pe_index[(row.position - i - 1) * num_tables + t] : 0;
  return row.index[t] << (a.num_anchors + a.num_pe) | k << a.num_pe | e;
}

// item = row * O + o
template <bool fixed>
TRIVIUM_INLINE void decode_item(const LutDecodeArgs& a, int64_t item) {
  const auto [row, o] = split(item, a.table.outputs);
  const DecodeRow seen = decode_row(a, row);
  Sum<fixed> sum = 0;
  for_tables_of(a.table, o, [&](int64_t t, int64_t place) {
    sum += pairs_sum<fixed>(a.table, a.numerics, t, place, o, seen.first, seen.position,
                            [&](int64_t i) { return decode_cell(a, seen, i, t); });
  });
  const float y = value_of(sum, a.numerics);
  a.y[item] = a.accumulate ? a.y[item] + y : y;
}

}  // namespace trivium::lut
