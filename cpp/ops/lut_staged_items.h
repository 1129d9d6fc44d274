// Items of the staged data flow (float mode): every buffer between two stages is written out. The stages bear
// the names of the design document they come from. See LutStagedArgs and lut_items.h.
#pragma once

#include "ops/lut_sequence_items.h"

namespace trivium::lut {

// Synapses [first, last) of a group, counted within its row.
struct Group {
  Row row;
  int64_t first, last;
};

TRIVIUM_INLINE Group group_of(const LutStagedArgs& a, int64_t id) {
  const auto [row, group] = split(id, a.groups);
  const auto [t, cell] = split(row, a.table.cells);
  const Row r = row_of(a.table, t, cell);
  const int64_t first = group * a.group_size, end = first + a.group_size;
  return {r, first, end < r.count ? end : r.count};
}

// The events of row (t, cell), one for each forward group; empty places up to a.groups.
TRIVIUM_INLINE void fire_row(const LutStagedArgs& a, int64_t b, int64_t t, int64_t cell, bool fires,
                             LutEvent* events) {
  const int64_t row = t * a.table.cells + cell, count = row_of(a.table, t, cell).count;
  for (int64_t g = 0; g < a.groups; ++g) {
    events[g].position = static_cast<int32_t>(b);
    events[g].payload = fires && g * a.group_size < count ? 1.0f : 0.0f;
    events[g].group = row * a.groups + g;
  }
}

// item = b * Nt + t
TRIVIUM_INLINE void fire_detectors_item(const LutStagedArgs& a, int64_t item) {
  const auto [b, t] = split(item, a.table.num_tables);
  fire_row(a, b, t, a.index[item], true, a.events + item * a.groups);
}

TRIVIUM_INLINE void fire_detectors_by_lookup_indices_item(const LutStagedArgs& a, int64_t item) {
  const auto [b, t] = split(item, a.table.num_tables);
  const int32_t cell = a.index[item], r = a.min_index[item];
  LutEvent* events = a.events + item * 2 * a.groups;
  fire_row(a, b, t, cell, true, events);
  fire_row(a, b, t, r < 0 ? cell : cell ^ (1 << r), r >= 0, events + a.groups);
}

// item = b * O + o
TRIVIUM_INLINE void fill_outputs_by_forward_groups_item(const LutStagedArgs& a, int64_t item) {
  const auto [b, o] = split(item, a.table.outputs);
  const int64_t per_row = a.table.num_tables * a.groups;
  const LutEvent* events = a.events + b * per_row;
  float sum = 0;
  for (int64_t e = 0; e < per_row; ++e) {
    if (events[e].payload == 0) continue;
    const Group g = group_of(a, events[e].group);
    if (!g.row.targets) {
      if (g.first <= o && o < g.last) sum += a.table.weights[g.row.first + o];
      continue;
    }
    for (int64_t k = g.first; k < g.last; ++k)
      if (g.row.targets[k] == o) sum += a.table.weights[g.row.first + k];
  }
  a.y[item] = sum;
}

// item = b * Nt + t; part 0 the addressed row, 1 the alternative.
TRIVIUM_INLINE void gather_gradients_item(const LutStagedArgs& a, int64_t item) {
  const LutEvent* events = a.events + (item * 2 + a.part) * a.groups;
  const float* gy = a.gy + split(item, a.table.num_tables).quotient * a.table.outputs;
  float partial[kPartials] = {};
  for (int64_t e = 0; e < a.groups; ++e) {
    if (events[e].payload == 0) continue;
    const Group g = group_of(a, events[e].group);
    for (int64_t k = g.first; k < g.last; ++k)
      partial[k % kPartials] += a.table.weights[g.row.first + k] * gy[g.row.targets ? g.row.targets[k] : k];
  }
  for (int half = kPartials / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  a.dots[item * 2 + a.part] = partial[0];
}

// Main events of the owner's rows, b ascending. Their groups partition a row: the row is added with the
// first.
TRIVIUM_INLINE void staged_gather_w_gradients_item(const LutStagedArgs& a, const WOwner& owner) {
  prepare_w_gradient<false>(a.table, a.target, {}, owner, true);
  for (int64_t b = 0; b < a.rows; ++b) {
    const LutEvent& event = a.events[(b * a.table.num_tables + owner.t) * 2 * a.groups];
    const int64_t cell = split(event.group, a.groups).quotient - owner.t * a.table.cells;
    if (event.payload != 0 && owner.first_cell <= cell && cell < owner.last_cell)
      add_w_gradient<false>(a.table, a.target, {}, owner, cell, a.gy + b * a.table.outputs, event.payload);
  }
}

// item = b * Nt + t
TRIVIUM_INLINE void staged_propagate_item(const LutStagedArgs& a, int64_t item) {
  const int32_t r = a.min_index[item];
  a.delta[item] = r < 0 ? 0
                        : delta_of<false>(a.dots[item * 2], a.dots[item * 2 + 1], a.min_delta[item],
                                          a.index[item] >> r & 1, {});
}

// item = (b * length + j) * Nt + t: one histogram over cells, with the alternatives marked in training.
TRIVIUM_INLINE void fill_after_detectors_firing_stat_item(const LutStagedArgs& a, int64_t item) {
  const LutSequence& s = a.sequence;
  const int64_t num_tables = a.table.num_tables;
  const auto [row, t] = split(item, num_tables);
  const auto [b, j] = split(row, s.length);
  int32_t* stat = a.firing_stat + item * a.table.cells;
  for (int64_t c = 0; c < a.table.cells; ++c) stat[c] = 0;
  for (int64_t i = 0; i < j; ++i) {
    const int32_t cell = cell_at(s, num_tables, b, i, j, t);
    stat[cell] += 1;
    if (!s.min_index) continue;
    const int64_t k = detector_at(s, num_tables, b, i, t), e = (j - i - 1) * num_tables + t;
    const int32_t rq = s.min_index[item], rk = s.min_index[k], re = s.num_pe ? s.pe_min_index[e] : -1;
    const PairFlip flip =
        pair_flip(rq, s.min_delta[item], rk, s.min_delta[k], re, s.num_pe ? s.pe_min_delta[e] : 0);
    if (flip.any_x) {
      const int bit = flip.q_side ? rq + s.num_anchors + s.num_pe : rk + s.num_pe;
      stat[cell ^ (1 << bit)] |= kLutAlternative;
    }
    if (flip.pe) stat[cell ^ (1 << re)] |= kLutAlternative;
  }
}

// First place of (b, j, t) in the main events.
TRIVIUM_INLINE int64_t event_place(const LutStagedArgs& a, int64_t b, int64_t j, int64_t t) {
  const int64_t pairs = a.sequence.length * (a.sequence.length - 1) / 2;
  return a.table.num_tables * (b * pairs + j * (j - 1) / 2) + t * j;
}

// item = (b * length + j) * Nt + t: lists the non-zeros of one histogram.
TRIVIUM_INLINE void densify_firing_stat_item(const LutStagedArgs& a, int64_t item) {
  const LutSequence& s = a.sequence;
  const auto [row, t] = split(item, a.table.num_tables);
  const auto [b, j] = split(row, s.length);
  const int64_t place = event_place(a, b, j, t);
  const int32_t* stat = a.firing_stat + item * a.table.cells;
  LutEvent* main = a.events + place;
  LutEvent* alternative = a.alternatives ? a.alternatives + 2 * place : nullptr;
  int64_t mains = 0, alternatives = 0;
  for (int64_t c = 0; c < a.table.cells; ++c) {
    const int32_t count = stat[c] & (kLutAlternative - 1);
    const LutEvent event{static_cast<int32_t>(row), static_cast<float>(count), t * a.table.cells + c};
    if (count != 0) main[mains++] = event;
    if (alternative && (stat[c] & kLutAlternative)) {
      alternative[alternatives] = event;
      alternative[alternatives++].payload = 1;
    }
  }
  for (; mains < j; ++mains) main[mains].payload = 0;
  for (; alternative && alternatives < 2 * j; ++alternatives) alternative[alternatives].payload = 0;
}

// item = (b * length + j) * O + o
TRIVIUM_INLINE void fill_outputs_by_sparse_firings_item(const LutStagedArgs& a, int64_t item) {
  const LutTable& w = a.table;
  const auto [row, o] = split(item, w.outputs);
  const auto [b, j] = split(row, a.sequence.length);
  float sum = 0;
  for (int64_t t = 0; t < w.num_tables; ++t) {
    const LutEvent* events = a.events + event_place(a, b, j, t);
    float part = 0;
    for (int64_t e = 0; e < j; ++e) {
      if (events[e].payload == 0) continue;
      const Row r = row_of(w, t, events[e].group - t * w.cells);
      if (r.targets) {
        for (int64_t k = find_target(r, o); k < r.count && r.targets[k] == o; ++k)
          part += events[e].payload * w.weights[r.first + k];
      } else {
        part += events[e].payload * w.weights[r.first + o];
      }
    }
    sum += part;
  }
  a.y[item] = sum;
}

// item = one event: its dot product is stored, never added, so a row that is main and alternative is right.
TRIVIUM_INLINE void gather_gradients_for_sequence_item(const LutStagedArgs& a, int64_t item) {
  const LutEvent& event = (a.part ? a.alternatives : a.events)[item];
  if (event.payload == 0) return;
  const auto [t, cell] = split(event.group, a.table.cells);
  a.dots[(event.position * a.table.num_tables + t) * a.table.cells + cell] =
      dot<false>(a.table, row_of(a.table, t, cell), a.gy + event.position * a.table.outputs);
}

TRIVIUM_INLINE void staged_gather_w_gradients_for_sequence_item(const LutStagedArgs& a, const WOwner& owner) {
  const LutSequence& s = a.sequence;
  prepare_w_gradient<false>(a.table, a.target, {}, owner, true);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t j = 1; j < s.length; ++j) {
      const LutEvent* events = a.events + event_place(a, b, j, owner.t);
      for (int64_t e = 0; e < j; ++e) {
        if (events[e].payload == 0) continue;
        const int64_t cell = events[e].group - owner.t * a.table.cells;
        if (owner.first_cell <= cell && cell < owner.last_cell)
          add_w_gradient<false>(a.table, a.target, {}, owner, cell,
                                a.gy + (b * s.length + j) * a.table.outputs, events[e].payload);
      }
    }
}

// item = b * Nt + t
TRIVIUM_INLINE void propagate_through_detectors_for_sequence_item(const LutStagedArgs& a, int64_t item) {
  const Split place = split(item, a.table.num_tables);
  const int64_t b = place.quotient, t = place.remainder;
  sequence_deltas<false>(a.sequence, {}, a.table.num_tables, b, t, a.delta, a.pe_delta, true,
                         [&](int64_t j, int32_t cell) {
                           const int64_t row = b * a.sequence.length + j;
                           return a.dots[(row * a.table.num_tables + t) * a.table.cells + cell];
                         });
}

}  // namespace trivium::lut
