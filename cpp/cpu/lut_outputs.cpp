// Outputs of the LUT layers that have no vector form: sparse tables, fixed-point sums, product modes. Rows
// are added, or scattered to their targets, table after table, so that the work is that of the rows that
// fire; an output still adds what it gets in the order of ops/lut_items.h.
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
  lut::Sum<fixed>* sums;    // of output o: [o - first], like:
  lut::Sum<fixed>* part;    // what a table's sparse rows give; zero between uses, like:
  lut::Real<fixed>* reals;  // what fully connected rows give, before it is one contribution

  bool is_sparse() const { return table.form != LutForm::fully_connected; }

  // The row's synapses that reach the range.
  lut::Row sparse_row(int64_t t, int64_t cell) const {
    const lut::Row row = lut::row_of(table, t, cell);
    if (first == 0 && last == table.outputs) return row;
    const int64_t begin = lut::find_target(row, first), end = lut::find_target(row, last);
    return {row.first + begin, row.targets + begin, end - begin};
  }
  void scatter(const lut::Row& row, lut::Sum<fixed>* to) const {
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
  void add_dense_row(int64_t t, int64_t cell) const {
    const float* w = table.weights + (t * table.cells + cell) * table.outputs + first;
    for (int64_t k = 0; k < last - first; ++k) reals[k] += lut::Real<fixed>(w[k]);
  }
  void move_reals() const {
    for (int64_t k = 0; k < last - first; ++k) {
      sums[k] += lut::contribution<fixed>(reals[k], numerics);
      reals[k] = 0;
    }
  }
  // lut::pairs_sum of table t for all outputs of the range.
  template <class Cell>
  void add_pairs(int64_t t, int64_t begin, int64_t end, const Cell& cell_of) const {
    if (!is_sparse()) {
      for (int64_t i = begin; i < end; ++i) add_dense_row(t, cell_of(i));
      return move_reals();
    }
    for (int64_t i = begin; i < end; ++i) scatter(sparse_row(t, cell_of(i)), part);
    const bool alike = table.form == LutForm::shared;  // all rows have the targets of the first
    for (int64_t i = begin; i < (alike ? std::min(begin + 1, end) : end); ++i)
      move_part(sparse_row(t, cell_of(i)));
  }
  // What lut::fill_outputs_item adds, for all outputs of the range.
  void add_tables(const int32_t* index) const {
    const int64_t tables = table.num_tables, block = fixed ? numerics.forward_block : tables;
    for (int64_t t = 0; t < tables; ++t) {
      const int64_t next = std::min(t + kAhead, tables - 1);
      __builtin_prefetch(table.weights + lut::row_of(table, next, index[next]).first);
      if (is_sparse())
        scatter(sparse_row(t, index[t]), sums);
      else
        add_dense_row(t, index[t]);
      if (!is_sparse() && ((t + 1) % block == 0 || t + 1 == tables)) move_reals();
    }
  }
};

// fill(row of y, range) adds to the range's sums. Where there are fewer rows than threads could take, a row
// is cut: what a sum gets does not depend on it.
template <bool fixed, class Fill>
void for_ranges(const LutTable& table, const LutNumerics& numerics, int64_t rows, float* y, bool accumulate,
                const Fill& fill) {
  using Sum = lut::Sum<fixed>;
  using Real = lut::Real<fixed>;
  static_assert(sizeof(Sum) == sizeof(Real));
  const int64_t outputs = table.outputs, most = (outputs + kLeastRange - 1) / kLeastRange;
  const int64_t ranges = std::clamp<int64_t>(4 * num_threads() / std::max<int64_t>(rows, 1), 1, most);
  parallel_for(rows * ranges, [&](int64_t task, int) {
    const int64_t row = task / ranges, number = task % ranges;
    const int64_t first = outputs * number / ranges, last = outputs * (number + 1) / ranges;
    const int64_t width = last - first;
    auto* sums = static_cast<Sum*>(thread_scratch(3 * width * static_cast<int64_t>(sizeof(Sum))));
    auto* reals = reinterpret_cast<Real*>(sums + 2 * width);
    std::fill_n(sums, 2 * width, Sum(0));
    std::fill_n(reals, width, Real(0));
    fill(row, Range<fixed>{table, numerics, first, last, sums, sums + width, reals});
    float* to = y + row * outputs + first;
    for (int64_t k = 0; k < width; ++k) {
      const float value = lut::value_of(sums[k], numerics);
      to[k] = accumulate ? to[k] + value : value;
    }
  });
}

}  // namespace

void lut_fill_outputs_by_rows(const LutForwardArgs& a) {
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(
        a.table, a.numerics, a.rows, a.y, a.accumulate != 0,
        [&](int64_t b, const Range<fixed>& range) { range.add_tables(a.index + b * a.table.num_tables); });
  });
}

void lut_fill_outputs_for_sequence_by_rows(const LutSequenceForwardArgs& a) {
  const LutSequence& s = a.sequence;
  const int64_t tables = a.table.num_tables;
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(
        a.table, a.numerics, s.batch * s.length, a.y, false, [&](int64_t row, const Range<fixed>& range) {
          const int64_t b = row / s.length, j = row % s.length;
          for (int64_t t = 0; t < tables; ++t)
            range.add_pairs(t, 0, j, [&](int64_t i) { return lut::cell_at(s, tables, b, i, j, t); });
        });
  });
}

// The indices of the new positions are in the cache already.
void lut_decode_by_rows(const LutDecodeArgs& a) {
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(a.table, a.numerics, a.rows, a.y, a.accumulate != 0,
                      [&](int64_t row, const Range<fixed>& range) {
                        const lut::DecodeRow seen = lut::decode_row(a, row);
                        for (int64_t t = 0; t < a.table.num_tables; ++t)
                          range.add_pairs(t, seen.first, seen.position,
                                          [&](int64_t i) { return lut::decode_cell(a, seen, i, t); });
                      });
  });
}

void lut_product_forward(const LutProductArgs& a) {
  const LutProduct& p = a.product;
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_ranges<fixed>(
        a.table, a.numerics, p.batch * p.length, a.y, false, [&](int64_t row, const Range<fixed>& range) {
          const int64_t b = row / p.length, j = row % p.length;
          for (int64_t t = 0; t < a.table.num_tables; ++t)
            range.add_pairs(t, 0, j, [&](int64_t i) { return lut::product_detector(p, b, i, j, t).index; });
        });
  });
}

}  // namespace trivium::cpu
