#include "cpu/lut.h"

#include <algorithm>
#include <atomic>

#include "core/parallel.h"
#include "cpu/levels.h"
#include "ops/lut_product_items.h"
#include "ops/lut_staged_items.h"

namespace trivium::cpu {
namespace {

constexpr int64_t kItems = 64;  // items of a task

template <class Fn>
void for_items(int64_t count, const Fn& fn) {
  parallel_for((count + kItems - 1) / kItems, [&](int64_t task, int) {
    for (int64_t item = task * kItems; item < std::min(count, (task + 1) * kItems); ++item) fn(item);
  });
}

bool is_fast(const LutTable& table, const LutNumerics& numerics) {
  return table.form == LutForm::fully_connected && numerics.rescale == 0;
}

// Owners of whole tables, or of parts of them where there are fewer tables than threads could take.
// Cells come in `units` equal runs that are never cut.
template <class Fn>
void for_owners(const LutTable& table, int64_t units, const Fn& fn) {
  const int64_t parts = std::clamp<int64_t>(4 * num_threads() / table.num_tables, 1, units);
  const int64_t run = table.cells / units;
  parallel_for(table.num_tables * parts, [&](int64_t task, int) {
    const int64_t part = task % parts;
    fn(lut::WOwner{task / parts, units * part / parts * run, units * (part + 1) / parts * run, 0, 1});
  });
}

}  // namespace

void lut_check_detectors(const LutDetectArgs& a) { current_level().lut_check_detectors(a); }

void lut_check_positional_embeddings(const LutDetectPeArgs& a) {
  for_items(a.distances * a.num_tables,
            [&](int64_t item) { lut::check_positional_embeddings_item(a, item); });
}

void lut_fill_outputs(const LutForwardArgs& a) {
  if (is_fast(a.table, a.numerics)) return current_level().lut_fill_outputs(a);
  lut_fill_outputs_by_rows(a);
}

void lut_gather_x_gradients(const LutXGradientArgs& a) {
  if (is_fast(a.table, a.numerics)) return current_level().lut_gather_x_gradients(a);
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_items(a.rows * a.table.num_tables, [&](int64_t item) {
      static_cast<lut::Sum<fixed>*>(a.delta)[item] =
          lut::gather_x_gradients_item<fixed>(a, item, [&](int64_t b, int64_t t, int32_t cell) {
            return lut::dot<fixed>(a.table, lut::row_of(a.table, t, cell), a.gy + b * a.table.outputs);
          });
    });
  });
}

void lut_propagate_through_detectors(const LutPropagateArgs& a) {
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    parallel_for(a.rows,
                 [&](int64_t row, int) { lut::propagate_through_detectors_item<fixed>(a, row, 0, 1); });
  });
}

void lut_gather_w_gradients(const LutWGradientArgs& a) {
  if (is_fast(a.table, a.numerics) && !a.target.rates) return current_level().lut_gather_w_gradients(a);
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_owners(a.table, a.table.cells,
               [&](const lut::WOwner& owner) { lut::gather_w_gradients_item<fixed>(a, owner); });
  });
}

void lut_fill_outputs_for_sequence(const LutSequenceForwardArgs& a) {
  if (is_fast(a.table, a.numerics)) return current_level().lut_fill_outputs_for_sequence(a);
  lut_fill_outputs_for_sequence_by_rows(a);
}

void lut_gather_x_gradients_for_sequence(const LutSequenceXGradientArgs& a) {
  if (is_fast(a.table, a.numerics)) return current_level().lut_gather_x_gradients_for_sequence(a);
  const LutTable& w = a.table;
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    parallel_for(a.sequence.batch * w.num_tables, [&](int64_t task, int) {
      const int64_t b = task / w.num_tables, t = task % w.num_tables;
      lut::sequence_deltas<fixed>(a.sequence, a.numerics, w.num_tables, b, t, a.delta, a.pe_delta, true,
                                  [&](int64_t j, int32_t cell) {
                                    const float* gy = a.gy + (b * a.sequence.length + j) * w.outputs;
                                    return lut::dot<fixed>(w, lut::row_of(w, t, cell), gy);
                                  });
    });
  });
}

void lut_gather_pe_gradients(const LutPeGradientArgs& a) {
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_items(a.unified ? a.rows : a.rows * a.num_tables,
              [&](int64_t item) { lut::gather_pe_gradients_item<fixed>(a, item); });
  });
}

void lut_gather_w_gradients_for_sequence(const LutSequenceWGradientArgs& a) {
  if (is_fast(a.table, a.numerics) && !a.target.rates)
    return current_level().lut_gather_w_gradients_for_sequence(a);
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    for_owners(a.table, int64_t{1} << a.sequence.num_anchors,
               [&](const lut::WOwner& owner) { lut::gather_w_gradients_for_sequence_item<fixed>(a, owner); });
  });
}

void lut_decode(const LutDecodeArgs& a) {
  if (is_fast(a.table, a.numerics)) return current_level().lut_decode(a);
  for (int64_t item = 0; item < a.rows * a.table.num_tables; ++item) lut::remember_item(a, item);
  lut_decode_by_rows(a);
}

void lut_product_backward(const LutProductArgs& a) {
  const LutProduct& p = a.product;
  lut_dispatch(a.numerics, [&]<bool fixed>() {
    if (a.gx)
      parallel_for(p.batch * p.length,
                   [&](int64_t row, int) { lut::product_x_gradients_item<fixed>(a, row); });
    if (a.gpe)
      parallel_for(p.unified ? a.pe_rows : a.pe_rows * p.num_tables,
                   [&](int64_t row, int) { lut::product_pe_gradients_item<fixed>(a, row); });
    if (a.target.out)
      for_owners(a.table, a.table.cells,
                 [&](const lut::WOwner& owner) { lut::product_w_gradients_item<fixed>(a, owner); });
  });
}

void lut_mark_rows(const LutMarkRowsArgs& a) {
  if (a.kind == 1) return current_level().lut_mark_pairs(a);
  const int64_t words = lut_mark_words(a.cells), count = lut::mark_count(a);
  parallel_for(a.num_tables, [&](int64_t t, int) {
    uint32_t* marks = a.marks + t * words;
    std::fill_n(marks, words, 0);
    for (int64_t item = 0; item < count; ++item) {
      const int32_t cell = lut::marked_cell(a, t, item);
      if (cell >= 0) marks[cell / 32] |= 1u << cell % 32;
    }
  });
}

namespace {

typedef uint32_t Words __attribute__((vector_size(16)));

Words words_at(const int32_t* p) {
  Words w;
  __builtin_memcpy(&w, p, sizeof w);
  return w;
}

// Whether some index has a bit above its num_bits, or some min_index leaves -1 .. num_bits - 1.
bool any_outside(const int32_t* index, const int32_t* min_index, int64_t count, int64_t num_bits) {
  const uint32_t above = ~0u << num_bits, last = static_cast<uint32_t>(num_bits) - 1;
  const auto outside = [=](auto i, auto r) { return (i & above) | (((r + 1) | (last - r)) & 0x80000000u); };
  Words any = {};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) any |= outside(words_at(index + k), words_at(min_index + k));
  uint32_t rest = any[0] | any[1] | any[2] | any[3];
  for (; k < count; ++k)
    rest |= outside(static_cast<uint32_t>(index[k]), static_cast<uint32_t>(min_index[k]));
  return rest != 0;
}

}  // namespace

// Almost always nothing is refused: a plain scan finds that out at the speed of memory.
void lut_admit_indices(const LutAdmitArgs& a) {
  constexpr int64_t kShare = 1 << 15;
  const int64_t count = a.rows * a.num_tables;
  std::atomic<bool> refused = a.anchors != nullptr || a.kept_index;
  parallel_for((count + kShare - 1) / kShare, [&](int64_t task, int) {
    const int64_t first = task * kShare, share = std::min(count - first, kShare);
    if (any_outside(a.index + first, a.min_index + first, share, a.num_bits)) refused = true;
  });
  if (!refused)
    std::fill_n(a.refused, 2 * kLutAdmitParts, -1);
  else
    for_items(kLutAdmitParts, [&](int64_t part) { lut::admit_indices_item(a, part); });
}

void lut_normalize(const LutNormalizeArgs& a) {
  for_items(kLutNormalizeParts, [&](int64_t item) { lut::normalize_part_item(a, item); });
  lut::normalize_scale_item(a);
  for_items(a.count, [&](int64_t item) { lut::normalize_item(a, item); });
}

namespace {

void staged_rows(const LutStagedArgs& a) {
  const int64_t detectors = a.rows * a.table.num_tables;
  switch (a.stage) {
    case LutStage::fire_detectors:
      return for_items(detectors, [&](int64_t item) { lut::fire_detectors_item(a, item); });
    case LutStage::fire_detectors_by_lookup_indices:
      return for_items(detectors, [&](int64_t item) { lut::fire_detectors_by_lookup_indices_item(a, item); });
    case LutStage::fill_outputs_by_forward_groups:
      return for_items(a.rows * a.table.outputs,
                       [&](int64_t item) { lut::fill_outputs_by_forward_groups_item(a, item); });
    case LutStage::gather_gradients:
      return for_items(detectors, [&](int64_t item) { lut::gather_gradients_item(a, item); });
    case LutStage::gather_w_gradients:
      return for_owners(a.table, a.table.cells,
                        [&](const lut::WOwner& owner) { lut::staged_gather_w_gradients_item(a, owner); });
    default:
      return for_items(detectors, [&](int64_t item) { lut::staged_propagate_item(a, item); });
  }
}

void staged_sequences(const LutStagedArgs& a) {
  const LutSequence& s = a.sequence;
  const int64_t rows = s.batch * s.length, num_tables = a.table.num_tables;
  const int64_t events = s.batch * num_tables * s.length * (s.length - 1) / 2;
  switch (a.stage) {
    case LutStage::fill_after_detectors_firing_stat:
      return for_items(rows * num_tables,
                       [&](int64_t item) { lut::fill_after_detectors_firing_stat_item(a, item); });
    case LutStage::densify_firing_stat:
      return for_items(rows * num_tables, [&](int64_t item) { lut::densify_firing_stat_item(a, item); });
    case LutStage::fill_outputs_by_sparse_firings:
      return for_items(rows * a.table.outputs,
                       [&](int64_t item) { lut::fill_outputs_by_sparse_firings_item(a, item); });
    case LutStage::gather_gradients_for_sequence:
      return for_items(a.part ? 2 * events : events,
                       [&](int64_t item) { lut::gather_gradients_for_sequence_item(a, item); });
    case LutStage::gather_w_gradients_for_sequence:
      return for_owners(a.table, a.table.cells, [&](const lut::WOwner& owner) {
        lut::staged_gather_w_gradients_for_sequence_item(a, owner);
      });
    default:
      return for_items(s.batch * num_tables,
                       [&](int64_t item) { lut::propagate_through_detectors_for_sequence_item(a, item); });
  }
}

}  // namespace

void lut_staged(const LutStagedArgs& a) {
  if (a.stage < LutStage::fill_after_detectors_firing_stat)
    staged_rows(a);
  else
    staged_sequences(a);
}

}  // namespace trivium::cpu
