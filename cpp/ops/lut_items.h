// What every backend computes in a LUT layer, item by item: the CPU runs items as tasks, a GPU as threads.
// Each element of a result has one owner that adds its contributions in one fixed order, so sums are
// deterministic without atomics and have the same bits on every backend. Forced inline: the file is built
// for the levels of the CPU and for devices.
#pragma once

#include <type_traits>

#include "core/half.h"
#include "ops/lut_args.h"

namespace trivium::lut {

// Contributions to gradients not larger than this are dropped; a NaN is not.
inline constexpr float kGradientEps = 1e-17f;
// A dot product over a row is 32 partial sums, element k in partial k % 32, folded by halves.
inline constexpr int kPartials = 32;

template <bool fixed>
using Real = std::conditional_t<fixed, double, float>;  // of dot products and contributions
template <bool fixed>
using Sum = std::conditional_t<fixed, int64_t, float>;  // of accumulators

TRIVIUM_INLINE float magnitude(float x) { return x < 0 ? -x : x; }
TRIVIUM_INLINE double magnitude(double x) { return x < 0 ? -x : x; }

inline constexpr double kFixedUnit = (1 << 20) - 1;

// Whole quanta of one contribution, towards zero; saturates far outside the documented range, NaN is 0.
TRIVIUM_INLINE int64_t to_quanta(double v, double rescale) {
  const double q = v * kFixedUnit * rescale;
  constexpr double kLimit = 0x1p52;
  if (q >= kLimit) return int64_t{1} << 52;
  if (q <= -kLimit) return -(int64_t{1} << 52);
  return q == q ? static_cast<int64_t>(q) : 0;
}

// A weight gradient's sum is 32 bits wide, in the place of the float; it does not leave its range.
TRIVIUM_INLINE void add_to_quanta(float& place, int64_t quanta) {
  constexpr int64_t kLimit = 0x7fffffff;
  const int64_t sum = __builtin_bit_cast(int32_t, place) + quanta;
  const auto kept = static_cast<int32_t>(sum > kLimit ? kLimit : sum < -kLimit ? -kLimit : sum);
  place = __builtin_bit_cast(float, kept);
}

template <bool fixed>
TRIVIUM_INLINE Sum<fixed> contribution(Real<fixed> v, const LutNumerics& numerics) {
  if constexpr (fixed)
    return to_quanta(v, numerics.rescale);
  else
    return v;
}

// The same for gradients, where tiny values are dropped.
template <bool fixed>
TRIVIUM_INLINE Sum<fixed> gradient_contribution(Real<fixed> v, const LutNumerics& numerics) {
  if (magnitude(v) <= Real<fixed>(kGradientEps)) return 0;
  return contribution<fixed>(v, numerics);
}

TRIVIUM_INLINE float value_of(float sum, const LutNumerics&) { return sum; }
TRIVIUM_INLINE float value_of(int64_t sum, const LutNumerics& numerics) {
  return static_cast<float>(static_cast<double>(sum) / kFixedUnit / numerics.rescale);
}

// Slope of the surrogate: sgn / 2 / (1 + |u|)^2, sgn that of the bit.
template <bool fixed>
TRIVIUM_INLINE Real<fixed> slope(float u, int32_t bit) {
  const Real<fixed> distance = Real<fixed>(1) + magnitude(Real<fixed>(u));
  return Real<fixed>(bit ? 0.5 : -0.5) / (distance * distance);
}

// item = quotient * n + remainder. Devices divide 32-bit numbers several times faster than 64-bit ones.
struct Split {
  int64_t quotient, remainder;
};
TRIVIUM_INLINE Split split(int64_t item, int64_t n) {
  const int64_t quotient = ((item | n) >> 32) == 0
                               ? static_cast<int64_t>(static_cast<uint32_t>(item) / static_cast<uint32_t>(n))
                               : item / n;
  return {quotient, item - quotient * n};
}

struct Row {
  int64_t first;           // weights[first .. first + count)
  const int32_t* targets;  // null: target k is k
  int64_t count;
};

TRIVIUM_INLINE Row row_of(const LutTable& w, int64_t t, int64_t cell) {
  if (w.form == LutForm::fully_connected) return {(t * w.cells + cell) * w.outputs, nullptr, w.outputs};
  if (w.form == LutForm::shared) {
    const int64_t begin = w.pointers[t], count = w.pointers[t + 1] - begin;
    return {w.cells * begin + cell * count, w.targets + begin, count};
  }
  const int64_t row = t * w.cells + cell, begin = w.pointers[row];
  return {begin, w.targets + begin, w.pointers[row + 1] - begin};
}

// The place in the row of the first target >= output.
TRIVIUM_INLINE int64_t find_target(const Row& row, int64_t output) {
  int64_t low = 0, high = row.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (row.targets[middle] < output)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// sum += what the row gives to one output; sparse rows round each synapse on its own. place: as in LutReach.
template <bool fixed>
TRIVIUM_INLINE void add_synapses(const LutTable& w, const Row& row, int64_t output, int64_t place,
                                 const LutNumerics& numerics, Sum<fixed>& sum) {
  for (int64_t k = place < 0 ? find_target(row, output) : place; k < row.count && row.targets[k] == output;
       ++k)
    sum += contribution<fixed>(w.weights[row.first + k], numerics);
}

// fn(t, place) for the tables, ascending, that have output o among their targets.
template <class Fn>
TRIVIUM_INLINE void for_tables_of(const LutTable& w, int64_t o, const Fn& fn) {
  const bool all = w.form == LutForm::fully_connected;
  const int64_t end = all ? w.num_tables : w.reach_starts[o + 1];
  for (int64_t n = all ? 0 : w.reach_starts[o]; n < end; ++n) {
    const LutReach source = all ? LutReach{static_cast<int32_t>(n), 0} : w.reach[n];
    fn(int64_t{source.table}, int64_t{source.place});
  }
}

// One element of 32 interleaved partial sums.
template <bool fixed>
TRIVIUM_INLINE Real<fixed> partial_dot(const LutTable& w, const Row& row, const float* gy, int lane) {
  Real<fixed> sum = 0;
  for (int64_t k = lane; k < row.count; k += kPartials)
    sum += Real<fixed>(w.weights[row.first + k]) * Real<fixed>(gy[row.targets ? row.targets[k] : k]);
  return sum;
}

// row . gy, by one thread.
template <bool fixed>
TRIVIUM_INLINE Real<fixed> dot(const LutTable& w, const Row& row, const float* gy) {
  Real<fixed> partial[kPartials];
  for (int lane = 0; lane < kPartials; ++lane) partial[lane] = partial_dot<fixed>(w, row, gy, lane);
  for (int half = kPartials / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  return partial[0];
}

// The detector rule. An unusable difference (NaN, unused pair) gives bit 0 and is never the smallest.
struct Detector {
  int32_t index = 0, min_index = -1;
  float min_delta = 0;

  TRIVIUM_INLINE void see(int32_t r, float u, float cmp_eps) {
    if (u > 0 && u >= cmp_eps) index |= 1 << r;
    if (u == u && (min_index < 0 || magnitude(u) < magnitude(min_delta))) min_index = r, min_delta = u;
  }
  TRIVIUM_INLINE void write(int32_t* indices, float* min_deltas, int32_t* min_indices, int64_t at) const {
    indices[at] = index;
    if (!min_deltas) return;
    min_deltas[at] = min_delta;
    min_indices[at] = min_index;
  }
};

// item = row * Nt + t
TRIVIUM_INLINE void check_detectors_item(const LutDetectArgs& a, int64_t item) {
  const auto [row, t] = split(item, a.num_tables);
  const float* x = a.x + row * a.inputs;
  const int32_t* pair = a.anchors + t * a.num_anchors * 2;
  Detector d;
  for (int32_t r = 0; r < a.num_anchors; ++r, pair += 2)
    if (pair[0] >= 0 && pair[1] >= 0) d.see(r, x[pair[0]] - x[pair[1]], a.cmp_eps);
  d.write(a.index, a.min_delta, a.min_index, item);
}

// item = distance * Nt + t
TRIVIUM_INLINE void check_positional_embeddings_item(const LutDetectPeArgs& a, int64_t item) {
  const float* pe = a.pe + (a.unified ? split(item, a.num_tables).quotient : item) * a.num_pe;
  Detector d;
  for (int32_t r = 0; r < a.num_pe; ++r) d.see(r, pe[r], a.cmp_eps);
  d.write(a.index, a.min_delta, a.min_index, item);
}

// item = b * O + o
template <bool fixed>
TRIVIUM_INLINE void fill_outputs_item(const LutForwardArgs& a, int64_t item) {
  const LutTable& w = a.table;
  const auto [b, o] = split(item, w.outputs);
  const int32_t* index = a.index + b * w.num_tables;
  Sum<fixed> sum = 0;
  if (w.form != LutForm::fully_connected) {
    for_tables_of(w, o, [&](int64_t t, int64_t place) {
      add_synapses<fixed>(w, row_of(w, t, index[t]), o, place, a.numerics, sum);
    });
  } else {
    const int64_t block = fixed ? a.numerics.forward_block : w.num_tables;
    for (int64_t t = 0; t < w.num_tables;) {
      const int64_t end = t + block < w.num_tables ? t + block : w.num_tables;
      Real<fixed> part = 0;
      for (; t < end; ++t) part += Real<fixed>(w.weights[(t * w.cells + index[t]) * w.outputs + o]);
      sum += contribution<fixed>(part, a.numerics);
    }
  }
  const float y = value_of(sum, a.numerics);
  a.y[item] = a.accumulate ? a.y[item] + y : y;
}

// delta of one detector from the two dot products.
template <bool fixed>
TRIVIUM_INLINE Sum<fixed> delta_of(Real<fixed> main, Real<fixed> alternative, float u, int32_t bit,
                                   const LutNumerics& numerics) {
  return gradient_contribution<fixed>(slope<fixed>(u, bit) * (main - alternative), numerics);
}

// item = b * Nt + t; dot(b, t, cell) gives row . gy[b]. Every lane of a group on a GPU calls it; all get
// delta.
template <bool fixed, class Dot>
TRIVIUM_INLINE Sum<fixed> gather_x_gradients_item(const LutXGradientArgs& a, int64_t item,
                                                  const Dot& dot_of) {
  const auto [b, t] = split(item, a.table.num_tables);
  const int32_t cell = a.index[item], r = a.min_index[item];
  const int32_t flip = r < 0 ? 0 : 1 << r;
  const Real<fixed> main = dot_of(b, t, cell), alternative = dot_of(b, t, cell ^ flip);
  if (r < 0) return 0;
  return delta_of<fixed>(main, alternative, a.min_delta[item], cell & flip, a.numerics);
}

// Thread `lane` of `lanes` owns the inputs i = lane (mod lanes) of row b.
template <bool fixed>
TRIVIUM_INLINE void propagate_through_detectors_item(const LutPropagateArgs& a, int64_t b, int32_t lane,
                                                     int32_t lanes) {
  Sum<fixed>* sums;
  if constexpr (fixed)
    sums = a.sums + b * a.inputs;
  else
    sums = a.gx + b * a.inputs;
  for (int64_t i = lane; i < a.inputs; i += lanes) sums[i] = 0;
  const auto* delta = static_cast<const Sum<fixed>*>(a.delta) + b * a.num_tables;
  const int32_t* min_index = a.min_index + b * a.num_tables;
  for (int64_t t = 0; t < a.num_tables; ++t) {
    if (min_index[t] < 0) continue;
    const int32_t* pair = a.anchors + (t * a.num_anchors + min_index[t]) * 2;
    if (lanes == 1 || pair[0] % lanes == lane) sums[pair[0]] += delta[t];
    if (lanes == 1 || pair[1] % lanes == lane) sums[pair[1]] -= delta[t];
  }
  if constexpr (fixed)
    for (int64_t i = lane; i < a.inputs; i += lanes) a.gx[b * a.inputs + i] = value_of(sums[i], a.numerics);
}

// Rows [first_cell, last_cell) of table t are one owner's, its threads share the elements of a row.
struct WOwner {
  int64_t t, first_cell, last_cell, lane, lanes;
};

TRIVIUM_INLINE int32_t count_bits(uint32_t v) {
#ifdef __POPCNT__  // levels of the CPU that have the instruction
  return __builtin_popcount(v);
#else
  v -= v >> 1 & 0x55555555u;
  v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
  return static_cast<int32_t>(((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
#endif
}

// Marked rows before row (t, cell).
TRIVIUM_INLINE int64_t rank_of_row(const LutRowPlaces& p, int64_t cells, int64_t t, int64_t cell) {
  const int64_t word = t * lut_mark_words(cells) + cell / 32;
  return p.ranks[word] + count_bits(p.marks[word] & ((1u << cell % 32) - 1));
}

// Where row (t, cell) begins in the gradient; -1: it has no place there.
TRIVIUM_INLINE int64_t place_of_row(const LutTable& w, const LutRowPlaces& p, int64_t t, int64_t cell) {
  if (!p.marks) return row_of(w, t, cell).first;
  if (!(p.marks[t * lut_mark_words(w.cells) + cell / 32] >> cell % 32 & 1)) return -1;
  const int64_t rank = rank_of_row(p, w.cells, t, cell);
  return p.starts ? p.starts[rank] : rank * w.outputs;
}

template <bool fixed>
TRIVIUM_INLINE void add_w_gradient(const LutTable& w, const LutWeightTarget& target,
                                   const LutNumerics& numerics, const WOwner& owner, int64_t cell,
                                   const float* gy, float count) {
  const Row row = row_of(w, owner.t, cell);
  const int64_t to = place_of_row(w, target.places, owner.t, cell);
  for (int64_t k = owner.lane; k < row.count; k += owner.lanes) {
    const float g = gy[row.targets ? row.targets[k] : k];
    if (magnitude(g) <= kGradientEps) continue;
    Real<fixed> rate = target.rate;
    if (target.rates) rate *= Real<fixed>(target.rates[row.first + k]);
    const Real<fixed> v = rate * (Real<fixed>(count) * Real<fixed>(g));
    if (target.sgd)
      target.out[to + k] -= target.eta * static_cast<float>(v);
    else if constexpr (fixed)
      add_to_quanta(target.out[to + k], to_quanta(v, numerics.rescale));
    else
      target.out[to + k] += v;
  }
}

// Zeroes the owner's rows before (begin) and turns quanta into values after them.
template <bool fixed>
TRIVIUM_INLINE void prepare_w_gradient(const LutTable& w, const LutWeightTarget& target,
                                       const LutNumerics& numerics, const WOwner& owner, bool begin) {
  if (target.sgd || (!begin && !fixed)) return;
  for (int64_t cell = owner.first_cell; cell < owner.last_cell; ++cell) {
    const Row row = row_of(w, owner.t, cell);
    const int64_t to = place_of_row(w, target.places, owner.t, cell);
    if (to < 0) continue;
    for (int64_t k = owner.lane; k < row.count; k += owner.lanes) {
      float& out = target.out[to + k];
      out = begin ? 0 : value_of(int64_t{__builtin_bit_cast(int32_t, out)}, numerics);
    }
  }
}

template <bool fixed>
TRIVIUM_INLINE void gather_w_gradients_item(const LutWGradientArgs& a, const WOwner& owner) {
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, true);
  for (int64_t b = 0; b < a.rows; ++b) {
    const int64_t cell = a.index[b * a.table.num_tables + owner.t];
    if (owner.first_cell <= cell && cell < owner.last_cell)
      add_w_gradient<fixed>(a.table, a.target, a.numerics, owner, cell, a.gy + b * a.table.outputs, 1);
  }
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, false);
}

// A pair that is not used is nobody's least certain one.
TRIVIUM_INLINE bool admits_min_index(const LutAdmitArgs& a, int64_t i, int32_t r) {
  if (r < -1 || r >= a.num_bits) return false;
  if (r < 0 || !a.anchors) return true;
  const int32_t* pair = a.anchors + (split(i, a.num_tables).remainder * a.num_bits + r) * 2;
  return pair[0] >= 0 && pair[1] >= 0;
}

// item: a part, which has every kLutAdmitParts-th index.
TRIVIUM_INLINE void admit_indices_item(const LutAdmitArgs& a, int64_t item) {
  int64_t first = -1, first_min = -1;
  for (int64_t i = item; i < a.rows * a.num_tables; i += kLutAdmitParts) {
    const int32_t index = a.index[i], r = a.min_index[i], kept = index & ((1 << a.num_bits) - 1);
    const bool admits = admits_min_index(a, i, r);
    if (kept != index && first < 0) first = i;
    if (!admits && first_min < 0) first_min = i;
    if (!a.kept_index) continue;
    a.kept_index[i] = kept;
    a.kept_min_index[i] = admits ? r : -1;
  }
  a.refused[item] = first;
  a.refused[kLutAdmitParts + item] = first_min;
}

// Parts of the largest magnitude; item in [0, kLutNormalizeParts). A NaN wins.
TRIVIUM_INLINE void normalize_part_item(const LutNormalizeArgs& a, int64_t item) {
  float largest = 0;
  for (int64_t i = item; i < a.count; i += kLutNormalizeParts) {
    const float m = magnitude(a.values[i]);
    if (!(m <= largest)) largest = m;
  }
  a.scratch[item] = largest;
}

TRIVIUM_INLINE void normalize_scale_item(const LutNormalizeArgs& a) {
  float largest = 1e-16f;
  for (int64_t i = 0; i < kLutNormalizeParts; ++i)
    if (!(a.scratch[i] <= largest)) largest = a.scratch[i];
  a.scratch[kLutNormalizeParts] = largest;
}

TRIVIUM_INLINE void normalize_item(const LutNormalizeArgs& a, int64_t item) {
  a.values[item] /= a.scratch[kLutNormalizeParts];
}

}  // namespace trivium::lut
