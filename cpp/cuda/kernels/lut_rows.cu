// LUT layers without sequences: detectors, outputs, gradients. What an item computes is in ops/lut_items.h,
// shared with the CPU; here items get their threads. No atomics: an element of a result has one owner.
#include "cuda/kernels.h"
#include "cuda/lut.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// 32 threads a detector: one partial sum of each dot product a thread.
template <bool fixed>
GPU_KERNEL(kLutBlock)
void gather_x_gradients_kernel(LutXGradientArgs a, int64_t count) {
  const int64_t group = lut_group();
  if (group >= count) return;
  const auto delta = lut::gather_x_gradients_item<fixed>(a, group, [&](int64_t b, int64_t t, int32_t cell) {
    return group_dot<fixed>(a.table, lut::row_of(a.table, t, cell), a.gy + b * a.table.outputs);
  });
  if (lut_lane() == 0) as<lut::Sum<fixed>>(a.delta)[group] = delta;
}

// 32 threads a row of gx, each with the inputs it owns.
template <bool fixed>
GPU_KERNEL(kLutBlock, 6)
void propagate_through_detectors_kernel(LutPropagateArgs a) {
  const int64_t row = lut_group();
  if (row < a.rows) lut::propagate_through_detectors_item<fixed>(a, row, lut_lane(), lut::kPartials);
}

template <bool fixed>
GPU_KERNEL(kLutBlock, 4)
void gather_w_gradients_kernel(LutWGradientArgs a, LutOwners owners) {
  lut::WOwner owner;
  if (find_owner(owners, owner)) lut::gather_w_gradients_item<fixed>(a, owner);
}

GPU_DEVICE void clear_marks_item(const LutMarkRowsArgs& a, int64_t item) { a.marks[item] = 0; }

// Bits are only ever set: the words come out the same in any order.
GPU_DEVICE void set_mark(uint32_t* word, uint32_t bit) {
  for (uint32_t old = 0;;) {
    const uint32_t seen = atomic_cas(word, old, old | bit);
    if (seen == old || (seen & bit)) return;
    old = seen;
  }
}

constexpr int64_t kMarks = 8;  // items of a thread

// Block: part blockIdx % parts of a table's items.
GPU_KERNEL(kLutBlock) void mark_rows_kernel(LutMarkRowsArgs a, int64_t parts, int64_t count) {
  const auto [t, part] = lut::split(blockIdx.x, parts);
  uint32_t* marks = a.marks + t * lut_mark_words(a.cells);
  for (int64_t item = part * kLutBlock + threadIdx.x; item < count; item += parts * kLutBlock) {
    const int32_t cell = lut::marked_cell(a, t, item);
    if (cell >= 0) set_mark(marks + cell / 32, 1u << cell % 32);
  }
}

GPU_KERNEL(kLutBlock) void normalize_scale_kernel(LutNormalizeArgs a) {
  if (blockIdx.x == 0 && threadIdx.x == 0) lut::normalize_scale_item(a);
}

}  // namespace

void lut_check_detectors(Stream stream, const LutDetectArgs& a) {
  launch_items<LutDetectArgs, lut::check_detectors_item>(stream, a, a.rows * a.num_tables);
}

void lut_check_positional_embeddings(Stream stream, const LutDetectPeArgs& a) {
  launch_items<LutDetectPeArgs, lut::check_positional_embeddings_item>(stream, a, a.distances * a.num_tables);
}

void lut_fill_outputs(Stream stream, const LutForwardArgs& a) {
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch_items<LutForwardArgs, lut::fill_outputs_item<fixed>>(stream, a, a.rows * a.table.outputs);
  });
}

void lut_gather_x_gradients(Stream stream, const LutXGradientArgs& a) {
  const int64_t count = a.rows * a.table.num_tables;
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch(stream, {.grid = {lut_group_blocks(count)}, .block = kLutBlock}, gather_x_gradients_kernel<fixed>,
           a, count);
  });
}

void lut_propagate_through_detectors(Stream stream, const LutPropagateArgs& a) {
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch(stream, {.grid = {lut_group_blocks(a.rows)}, .block = kLutBlock},
           propagate_through_detectors_kernel<fixed>, a);
  });
}

void lut_gather_w_gradients(Stream stream, const LutWGradientArgs& a) {
  const LutOwners owners = share_rows(a.table, a.table.cells);
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch(stream, {.grid = {owners.blocks()}, .block = kLutBlock}, gather_w_gradients_kernel<fixed>, a,
           owners);
  });
}

void lut_mark_rows(Stream stream, const LutMarkRowsArgs& a) {
  const int64_t count = lut::mark_count(a);
  const int64_t parts = ceil_div(count, kLutBlock * kMarks);
  launch_items<LutMarkRowsArgs, clear_marks_item>(stream, a, a.num_tables * lut_mark_words(a.cells));
  launch(stream, {.grid = {a.num_tables * parts}, .block = kLutBlock}, mark_rows_kernel, a, parts, count);
}

void lut_admit_indices(Stream stream, const LutAdmitArgs& a) {
  launch_items<LutAdmitArgs, lut::admit_indices_item>(stream, a, kLutAdmitParts);
}

void lut_normalize(Stream stream, const LutNormalizeArgs& a) {
  launch_items<LutNormalizeArgs, lut::normalize_part_item>(stream, a, kLutNormalizeParts);
  launch(stream, {.grid = {1}, .block = kLutBlock}, normalize_scale_kernel, a);
  launch_items<LutNormalizeArgs, lut::normalize_item>(stream, a, a.count);
}

}  // namespace trivium::TRIVIUM_GPU_NS
