// Outputs of sparse LUT layers on the CPU. Rows are scattered to their targets, table after table, so the
// work is that of the synapses that fire; an output still adds what it gets in the order of ops/lut_items.h.
#include <algorithm>

#include "core/parallel.h"
#include "cpu/lut.h"
#include "cpu/scratch.h"
#include "ops/lut_product_items.h"

namespace trivium::cpu {
namespace {

constexpr int64_t kLeastRange = 256;  // outputs that are worth finding their place in every row
constexpr int64_t kAhead = 4;         // tables whose rows are fetched ahead

// Outputs [first, last) of one row of y, and their sums.
template <bool fixed>
struct Range {
  const LutTable& table;
  const LutNumerics& numerics;
  int64_t first, last;
  lut::Sum<fixed>*sums, *part;  // of output o: [o - first]; part is zero between uses

  // The row's synapses that reach the range.
  lut::Row clip(lut::Row row) const {
    if (first == 0 && last == table.outputs) return row;
    const int64_t begin = lut::find_target(row, first), end = lut::find_target(row, last);
    return {row.first + begin, row.targets + begin, end - begin};
  }
  lut::Row row(int64_t t, int64_t cell) const { return clip(lut::row_of(table, t, cell)); }

  void add(const lut::Row& row, lut::Sum<fixed>* to) const {
    const float* w = table.weights + row.first;
    for (int64_t k = 0; k < row.count; ++k)
      to[row.targets[k] - first] += lut::contribution<fixed>(w[k], numerics);
  }
  // sums += part where the row has targets. One that repeats adds a zero then.
  void move_part(const lut::Row& row) const {
    for (int64_t k = 0; k < row.count; ++k) {
      const int64_t at = row.targets[k] - first;
      sums[at] += part[at];
      part[at] = 0;
    }
  }
  // lut::pairs_sum of table t for all outputs of the range.
  template <class Cell>
  void add_pairs(int64_t t, int64_t begin, int64_t end, const Cell& cell_of) const {
    for (int64_t i = begin; i < end; ++i) add(row(t, cell_of(i)), part);
    const bool alike = table.form == LutForm::shared;  // all rows have the targets of the first
    for (int64_t i = begin; i < (alike ? std::min(begin + 1, end) : end); ++i) move_part(row(t, cell_of(i)));
  }
};

// fill(row of y, range) adds to the range's sums. Where there are fewer rows than threads could take, a row
// is cut: what a sum gets does not depend on it.
template <bool fixed, class Fill>
void for_ranges(const LutTable& table, const LutNumerics& numerics, int64_t rows, float* y, bool accumulate,
                const Fill& fill) {
  const int64_t outputs = table.outputs, most = (outputs + kLeastRange - 1) / kLeastRange;
  const int64_t ranges = std::clamp<int64_t>(4 * num_threads() / std::max<int64_t>(rows, 1), 1, most);
  parallel_for(rows * ranges, [&](int64_t task, int) {
    const int64_t row = task / ranges, number = task % ranges;
    const int64_t first = outputs * number / ranges, last = outputs * (number + 1) / ranges;
    const int64_t width = last - first;
    auto* sums = static_cast<lut::Sum<fixed>*>(
        thread_scratch(2 * width * static_cast<int64_t>(sizeof(lut::Sum<fixed>))));
    std::fill_n(sums, 2 * width, lut::Sum<fixed>(0));
    fill(row, Range<fixed>{table, numerics, first, last, sums, sums + width});
    float* to = y + row * outputs + first;
    for (int64_t k = 0; k < width; ++k) {
      const float value = lut::value_of(sums[k], numerics);
      to[k] = accumulate ? to[k] + value : value;
    }
  });
}

// fn<fixed>()
template <class Fn>
void dispatch(const LutNumerics& numerics, const Fn& fn) {
  if (numerics.rescale > 0)
    fn.template operator()<true>();
  else
    fn.template operator()<false>();
}

}  // namespace

void lut_fill_sparse_outputs(const LutForwardArgs& a) {
  const int64_t tables = a.table.num_tables;
  dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(a.table, a.numerics, a.rows, a.y, a.accumulate != 0,
                      [&](int64_t b, const Range<fixed>& range) {
                        const int32_t* index = a.index + b * tables;
                        for (int64_t t = 0; t < tables; ++t) {
                          const int64_t next = std::min(t + kAhead, tables - 1);
                          __builtin_prefetch(a.table.weights + lut::row_of(a.table, next, index[next]).first);
                          range.add(range.row(t, index[t]), range.sums);
                        }
                      });
  });
}

void lut_fill_sparse_outputs_for_sequence(const LutSequenceForwardArgs& a) {
  const LutSequence& s = a.sequence;
  const int64_t tables = a.table.num_tables;
  dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(
        a.table, a.numerics, s.batch * s.length, a.y, false, [&](int64_t row, const Range<fixed>& range) {
          const int64_t b = row / s.length, j = row % s.length;
          for (int64_t t = 0; t < tables; ++t)
            range.add_pairs(t, 0, j, [&](int64_t i) { return lut::cell_at(s, tables, b, i, j, t); });
        });
  });
}

void lut_decode_sparse(const LutDecodeArgs& a) {
  dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(a.table, a.numerics, a.rows, a.y, a.accumulate != 0,
                      [&](int64_t row, const Range<fixed>& range) {
                        const lut::DecodeRow seen = lut::decode_row(a, row);
                        for (int64_t t = 0; t < a.table.num_tables; ++t)
                          range.add_pairs(t, seen.first, seen.position,
                                          [&](int64_t i) { return lut::decode_cell(a, seen, i, t); });
                      });
  });
}

void lut_sparse_product_forward(const LutProductArgs& a) {
  const LutProduct& p = a.product;
  dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(
        a.table, a.numerics, p.batch * p.length, a.y, false, [&](int64_t row, const Range<fixed>& range) {
          const int64_t b = row / p.length, j = row % p.length;
          for (int64_t t = 0; t < a.table.num_tables; ++t)
            range.add_pairs(t, 0, j, [&](int64_t i) { return lut::product_detector(p, b, i, j, t).index; });
        });
  });
}

}  // namespace trivium::cpu
