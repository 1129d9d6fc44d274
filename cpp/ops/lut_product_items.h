// Items of the product-mode kernels, where a detector compares coordinates across the pair; see lut_items.h.
// Addresses are recomputed wherever they are needed: nothing of a pair is stored.
#pragma once

#include "ops/lut_sequence_items.h"

namespace trivium::lut {

// Where coordinate c of the compared vector lies.
struct ProductCoordinate {
  int32_t part;  // 0: x of the earlier position, 1: of the later one, 2: the embedding
  int64_t at;
};

TRIVIUM_INLINE ProductCoordinate product_coordinate(const LutProduct& p, int32_t c) {
  if (p.sliced) return {c % 3, c / 3};
  if (c < p.inputs) return {0, c};
  if (c < 2 * p.inputs) return {1, c - p.inputs};
  return {2, c - 2 * p.inputs};
}

TRIVIUM_INLINE int64_t product_pe_row(const LutProduct& p, int64_t d, int64_t t) {
  return (p.unified ? d : d * p.num_tables + t) * p.num_pe;
}

TRIVIUM_INLINE float product_value(const LutProduct& p, int64_t b, int64_t i, int64_t j, int64_t t,
                                   int32_t c) {
  const ProductCoordinate where = product_coordinate(p, c);
  if (where.part == 2) return p.pe[product_pe_row(p, j - i - 1, t) + where.at];
  return p.x[(b * p.length + (where.part ? j : i)) * p.inputs + where.at];
}

TRIVIUM_INLINE Detector product_detector(const LutProduct& p, int64_t b, int64_t i, int64_t j, int64_t t) {
  Detector d;
  const int32_t* pair = p.anchors + t * p.num_anchors * 2;
  for (int32_t r = 0; r < p.num_anchors; ++r, pair += 2)
    if (pair[0] >= 0 && pair[1] >= 0)
      d.see(r, product_value(p, b, i, j, t, pair[0]) - product_value(p, b, i, j, t, pair[1]), p.cmp_eps);
  return d;
}

// item = (b * length + j) * O + o
template <bool fixed>
TRIVIUM_INLINE void product_forward_item(const LutProductArgs& a, int64_t item) {
  const auto [row, o] = split(item, a.table.outputs);
  const auto [b, j] = split(row, a.product.length);
  Sum<fixed> sum = 0;
  for_tables_of(a.table, o, [&](int64_t t, int64_t place) {
    sum += pairs_sum<fixed>(a.table, a.numerics, t, place, o, 0, j,
                            [&](int64_t i) { return product_detector(a.product, b, i, j, t).index; });
  });
  a.y[item] = value_of(sum, a.numerics);
}

template <bool fixed>
TRIVIUM_INLINE Sum<fixed> product_delta(const LutProductArgs& a, const Detector& d, int64_t b, int64_t j,
                                        int64_t t) {
  const float* gy = a.gy + (b * a.product.length + j) * a.table.outputs;
  const int32_t bit = 1 << d.min_index;
  return delta_of<fixed>(dot<fixed>(a.table, row_of(a.table, t, d.index), gy),
                         dot<fixed>(a.table, row_of(a.table, t, d.index ^ bit), gy), d.min_delta,
                         d.index & bit, a.numerics);
}

// Adds one pair's delta to the sums of position s (of distance d: part 2) where its anchors lie there.
template <bool fixed>
TRIVIUM_INLINE void product_scatter(const LutProductArgs& a, int64_t b, int64_t i, int64_t j, int64_t t,
                                    int32_t part, Sum<fixed>* sums) {
  const Detector d = product_detector(a.product, b, i, j, t);
  if (d.min_index < 0) return;
  const int32_t* pair = a.product.anchors + (t * a.product.num_anchors + d.min_index) * 2;
  const ProductCoordinate plus = product_coordinate(a.product, pair[0]),
                          minus = product_coordinate(a.product, pair[1]);
  if (plus.part != part && minus.part != part) return;
  const Sum<fixed> delta = product_delta<fixed>(a, d, b, j, t);
  if (plus.part == part) sums[plus.at] += delta;
  if (minus.part == part) sums[minus.at] -= delta;
}

// The accumulators of row `item` of an output with `width` columns.
template <bool fixed>
TRIVIUM_INLINE Sum<fixed>* accumulators(float* out, int64_t* sums, int64_t item, int64_t width) {
  if constexpr (fixed)
    return sums + item * width;
  else
    return out + item * width;
}

// item = b * length + s: a row of gx.
template <bool fixed>
TRIVIUM_INLINE void product_x_gradients_item(const LutProductArgs& a, int64_t row) {
  const LutProduct& p = a.product;
  Sum<fixed>* sums = accumulators<fixed>(a.gx, a.sums, row, p.inputs);
  const auto [b, s] = split(row, p.length);
  for (int64_t c = 0; c < p.inputs; ++c) sums[c] = 0;
  for (int64_t t = 0; t < p.num_tables; ++t) {
    for (int64_t i = 0; i < s; ++i) product_scatter<fixed>(a, b, i, s, t, 1, sums);
    for (int64_t j = s + 1; j < p.length; ++j) product_scatter<fixed>(a, b, s, j, t, 0, sums);
  }
  if constexpr (fixed)
    for (int64_t c = 0; c < p.inputs; ++c) a.gx[row * p.inputs + c] = value_of(sums[c], a.numerics);
}

// item = d * Nt + t, unified d: a row of gpe.
template <bool fixed>
TRIVIUM_INLINE void product_pe_gradients_item(const LutProductArgs& a, int64_t item) {
  const LutProduct& p = a.product;
  Sum<fixed>* sums = accumulators<fixed>(a.gpe, a.sums, item, p.num_pe);
  const Split at = split(item, p.num_tables);
  const int64_t d = p.unified ? item : at.quotient;
  const int64_t t0 = p.unified ? 0 : at.remainder, t1 = p.unified ? p.num_tables : t0 + 1;
  for (int64_t r = 0; r < p.num_pe; ++r) sums[r] = 0;
  for (int64_t t = t0; t < t1; ++t)
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t i = 0; i + d + 1 < p.length; ++i) product_scatter<fixed>(a, b, i, i + d + 1, t, 2, sums);
  if constexpr (fixed)
    for (int64_t r = 0; r < p.num_pe; ++r) a.gpe[item * p.num_pe + r] = value_of(sums[r], a.numerics);
}

template <bool fixed>
TRIVIUM_INLINE void product_w_gradients_item(const LutProductArgs& a, const WOwner& owner) {
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, true);
  for (int64_t b = 0; b < a.product.batch; ++b)
    for (int64_t j = 1; j < a.product.length; ++j)
      for (int64_t i = 0; i < j; ++i) {
        const int64_t cell = product_detector(a.product, b, i, j, owner.t).index;
        if (owner.first_cell <= cell && cell < owner.last_cell)
          add_w_gradient<fixed>(a.table, a.target, a.numerics, owner, cell,
                                a.gy + (b * a.product.length + j) * a.table.outputs, 1);
      }
  prepare_w_gradient<fixed>(a.table, a.target, a.numerics, owner, false);
}

// What a table may be asked for: rows, or (b, j, i) of sequences, where i < j are pairs.
TRIVIUM_INLINE int64_t mark_count(const LutMarkRowsArgs& a) {
  if (a.kind == 0) return a.rows;
  const int64_t length = a.kind == 1 ? a.sequence.length : a.product.length;
  return (a.kind == 1 ? a.sequence.batch : a.product.batch) * length * length;
}

// The row of table t that `item` addresses, -1: none.
TRIVIUM_INLINE int32_t marked_cell(const LutMarkRowsArgs& a, int64_t t, int64_t item) {
  if (a.kind == 0) return a.index[item * a.num_tables + t];
  const int64_t length = a.kind == 1 ? a.sequence.length : a.product.length;
  const auto [position, i] = split(item, length);
  const auto [b, j] = split(position, length);
  if (i >= j) return -1;
  return a.kind == 1 ? cell_at(a.sequence, a.num_tables, b, i, j, t)
                     : product_detector(a.product, b, i, j, t).index;
}

}  // namespace trivium::lut
