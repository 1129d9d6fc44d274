// Weight gradients of the sequential LUT kernels of one CPU level; see lut_level.h.
#pragma once

#include "cpu/lut_level.h"
#include "ops/lut_sequence_items.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// The positions (b, j) of table t whose index lies in [q0, q1), those of one index together, each run in
// order: the rows of a later position's index lie together, and are in a cache when they are written. `keys`
// are the address bits of earlier positions, `pe` those of distances from the longest to the shortest.
struct PositionsByIndex {
  int32_t *ends, *order;  // of index q0 + n: order[ends[n - 1] .. ends[n])
  int32_t *keys, *pe;     // [batch * length], [length - 1]

  PositionsByIndex(const LutSequence& s, int64_t num_tables, int64_t t, int64_t q0, int64_t q1) {
    const int64_t rows = s.batch * s.length, count = q1 - q0;
    ends = static_cast<int32_t*>(thread_scratch((count + 1 + 2 * rows + s.length) * 4)) + 1;
    order = ends + count;
    keys = order + rows;
    pe = keys + rows;
    fill_zero(ends - 1, count + 1);
    for (int64_t row = 0; row < rows; ++row) keys[row] = s.index[row * num_tables + t];
    for (int64_t d = 1; d < s.length; ++d)
      pe[s.length - 1 - d] = s.num_pe ? s.pe_index[(d - 1) * num_tables + t] : 0;
    const auto owned = [&](int64_t row) { return q0 <= keys[row] && keys[row] < q1; };
    for (int64_t row = 0; row < rows; ++row)
      if (owned(row)) ++ends[keys[row] - q0];
    for (int64_t n = 0; n < count; ++n) ends[n] += ends[n - 1];
    // Starts move to the ends while positions are placed.
    for (int64_t n = count - 1; n >= 0; --n) ends[n] = ends[n - 1];
    for (int64_t row = 0; row < rows; ++row)
      if (owned(row)) order[ends[keys[row] - q0]++] = static_cast<int32_t>(row);
    for (int64_t row = 0; row < rows; ++row) keys[row] <<= s.num_pe;
  }
};

// The rows of table t of one later-position index, `cells` from `first_cell` on, and the positions of that
// index: order[begin .. end).
struct QueryRun {
  const PositionsByIndex& positions;
  const float* scaled;  // ScaledGradients of all positions
  int64_t t, first_cell, cells, begin, end, length, outputs;

  // fn(address bits of earlier positions, those of distances, number of pairs, contribution) for each
  // position
  template <class Fn>
  TRIVIUM_INLINE void for_positions(const Fn& fn) const {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = positions.order[n], b = row / length, j = row % length;
      fn(positions.keys + b * length, positions.pe + length - 1 - j, j, scaled + row * outputs);
    }
  }
};

// row_at(cell of the run) += contribution, or -= it, for each pair of the run in order.
template <bool subtract, class RowAt>
TRIVIUM_INLINE void add_run(const QueryRun& run, const RowAt& row_at) {
  run.for_positions([&](const int32_t* keys, const int32_t* pe, int64_t count,
                        const float* g) __attribute__((always_inline)) {
    for_columns(
        run.outputs, [&]<int kVectors>(int64_t k, int n) __attribute__((always_inline)) {
          F32 x[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) x[v] = load_n(g + k + v * kLanes, n);
          for (int64_t i = 0; i < count; ++i) {
            float* row = row_at(keys[i] | pe[i]) + k;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              const F32 old = load_n(row + v * kLanes, n);
              store_n(row + v * kLanes, subtract ? sub(old, x[v]) : add(old, x[v]), n);
            }
          }
        });
  });
}

// W -= contributions.
TRIVIUM_INLINE void update_run(const QueryRun& run, float* rows) {
  run.for_positions([&](const int32_t* keys, const int32_t* pe, int64_t count, const float*)
                        __attribute__((always_inline)) {
                          for (int64_t i = 0; i < count; ++i)
                            prefetch_row(rows + (keys[i] | pe[i]) * run.outputs, run.outputs);
                        });
  add_run<true>(
      run, [&](int32_t cell) __attribute__((always_inline)) { return rows + cell * run.outputs; });
}

// Also where most rows have no pair: on the machines measured, stores past the caches for those alone are
// slower.
TRIVIUM_INLINE void write_dense_run(const QueryRun& run, float* rows) {
  fill_zero(rows, run.cells * run.outputs);
  add_run<false>(
      run, [&](int32_t cell) __attribute__((always_inline)) { return rows + cell * run.outputs; });
}

// The marked rows of a run lie together.
TRIVIUM_INLINE void write_packed_run(const QueryRun& run, const LutRowPlaces& places, int64_t cells,
                                     float* out) {
  const int64_t words = lut_mark_words(cells);
  const uint32_t* marks = places.marks + run.t * words;
  const int64_t* ranks = places.ranks + run.t * words;
  const int64_t first = run.first_cell;
  const auto rank = [=](int64_t cell) __attribute__((always_inline)) {  // lut::rank_of_row, unsigned
    const auto c = static_cast<uint64_t>(first + cell);
    return ranks[c / 32] + lut::count_bits(marks[c / 32] & ((1u << c % 32) - 1));
  };
  const auto last = static_cast<uint64_t>(first + run.cells - 1);
  const int64_t count = rank(run.cells - 1) - rank(0) + (marks[last / 32] >> last % 32 & 1);
  float* const begin = out + rank(0) * run.outputs;
  const auto zeroes = [&](int64_t k, int n) __attribute__((always_inline)) { store_n(begin + k, zero(), n); };
  for_vectors(count * run.outputs, zeroes);
  // What the next run will write is fetched by the way, as much for each pair as a pair writes.
  const float* next = begin + count * run.outputs;
  const int64_t step = smaller(run.outputs, 4 * kLanes);
  const auto row_at = [&](int32_t cell) __attribute__((always_inline)) {
    for (int64_t k = 0; k < step; k += 16) __builtin_prefetch(next + k, 1);
    next += step;
    return out + rank(cell) * run.outputs;
  };
  add_run<false>(run, row_at);
}

// The addressed rows of sequences. Positions j of all sequences follow each other: loops of one length end
// where they are expected to.
void lut_mark_pairs(const LutMarkRowsArgs& a) {
  const LutSequence& s = a.sequence;
  const int64_t words = lut_mark_words(a.cells);
  parallel_for(a.num_tables, [&](int64_t t, int) {
    uint32_t* marks = a.marks + t * words;
    fill_zero(marks, words);
    const PositionsByIndex positions(s, a.num_tables, t, 0, 0);
    for (int64_t j = 1; j < s.length; ++j)
      for (int64_t b = 0; b < s.batch; ++b) {
        const int32_t *keys = positions.keys + b * s.length, *pe = positions.pe + s.length - 1 - j;
        const int32_t first = keys[j] << s.num_anchors;
        for (int64_t i = 0; i < j; ++i) {
          const auto cell = static_cast<uint32_t>(first | keys[i] | pe[i]);
          marks[cell / 32] |= 1u << cell % 32;
        }
      }
  });
}

// A task owns the rows of table t whose later-position index lies in [q0, q1).
void lut_gather_w_gradients_for_sequence(const LutSequenceWGradientArgs& a) {
  const LutTable& w = a.table;
  const LutSequence& s = a.sequence;
  const LutWeightTarget& target = a.target;
  const ScaledGradients scaled(a.gy, s.batch * s.length * w.outputs, target);
  const int64_t queries = int64_t{1} << s.num_anchors, cells = w.cells / queries;
  const int64_t ranges = smaller(larger(4 * num_threads() / w.num_tables, 1), queries);
  parallel_for(w.num_tables * ranges, [&](int64_t task, int) {
    const int64_t t = task / ranges, range = task % ranges;
    const int64_t q0 = queries * range / ranges, q1 = queries * (range + 1) / ranges;
    const PositionsByIndex positions(s, w.num_tables, t, q0, q1);
    for (int64_t q = q0, n = 0; q < q1; n = positions.ends[q++ - q0]) {
      const QueryRun run{positions, scaled.values,          t,        q * cells, cells,
                         n,         positions.ends[q - q0], s.length, w.outputs};
      float* rows = target.out + (t * w.cells + run.first_cell) * w.outputs;
      if (target.sgd)
        update_run(run, rows);
      else if (target.places.marks)
        write_packed_run(run, target.places, w.cells, target.out);
      else
        write_dense_run(run, rows);
    }
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
