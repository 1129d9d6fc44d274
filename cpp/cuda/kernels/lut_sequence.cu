// Sequential LUT layers: causal pairs, fused. Nothing of a pair is stored; see ops/lut_sequence_items.h.
#include "cuda/kernels.h"
#include "cuda/lut.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// 32 threads own (b, t) and walk its pairs.
template <bool fixed>
GPU_KERNEL(kLutBlock)
void gather_x_gradients_for_sequence_kernel(LutSequenceXGradientArgs a) {
  const LutTable& w = a.table;
  const int64_t group = lut_group(), count = a.sequence.batch * w.num_tables;
  if (group >= count) return;
  const lut::Split place = lut::split(group, w.num_tables);
  const int64_t b = place.quotient, t = place.remainder;
  lut::sequence_deltas<fixed>(a.sequence, a.numerics, w.num_tables, b, t, a.delta, a.pe_delta,
                              lut_lane() == 0, [&](int64_t j, int32_t cell) {
                                return group_dot<fixed>(w, lut::row_of(w, t, cell),
                                                        a.gy + (b * a.sequence.length + j) * w.outputs);
                              });
}

template <bool fixed>
GPU_KERNEL(kLutBlock, 4)
void gather_w_gradients_for_sequence_kernel(LutSequenceWGradientArgs a, LutOwners owners) {
  lut::WOwner owner;
  if (find_owner(owners, owner)) lut::gather_w_gradients_for_sequence_item<fixed>(a, owner);
}

constexpr int kDecodeBlock = 256;  // as many tables at a time as it has groups of 32 threads

// A block owns 32 outputs of a row. Its groups take tables in turn, whose sums the first group adds in the
// order of decode_item: a step of one row alone keeps many threads at work.
template <bool fixed>
GPU_KERNEL(kDecodeBlock, 4)
void decode_kernel(LutDecodeArgs a, int64_t tiles) {
  constexpr int kGroups = kDecodeBlock / lut::kPartials;
  GPU_SHARED(lut::Sum<fixed>, parts, kDecodeBlock);
  const auto [row, tile] = lut::split(blockIdx.x, tiles);
  const int group = static_cast<int>(threadIdx.x) / lut::kPartials;
  const int64_t tables = a.table.num_tables, o = tile * lut::kPartials + lut_lane();
  const bool owns = o < a.table.outputs;
  const lut::DecodeRow seen = lut::decode_row(a, row);
  lut::Sum<fixed> sum = 0;
  for (int64_t first = 0; first < tables; first += kGroups) {
    const int64_t t = first + group;
    if (owns && t < tables)
      parts[threadIdx.x] = lut::pairs_sum<fixed>(a.table, a.numerics, t, 0, o, seen.first, seen.position,
                                                 [&](int64_t i) { return lut::decode_cell(a, seen, i, t); });
    sync_block();
    const int64_t count = min(tables - first, int64_t{kGroups});
    for (int64_t g = 0; owns && group == 0 && g < count; ++g) sum += parts[g * lut::kPartials + lut_lane()];
    sync_block();
  }
  if (!owns || group != 0) return;
  const float y = lut::value_of(sum, a.numerics);
  const int64_t at = row * a.table.outputs + o;
  a.y[at] = a.accumulate ? a.y[at] + y : y;
}

}  // namespace

void lut_fill_outputs_for_sequence(Stream stream, const LutSequenceForwardArgs& a) {
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch_items<LutSequenceForwardArgs, lut::fill_outputs_for_sequence_item<fixed>>(
        stream, a, a.sequence.batch * a.sequence.length * a.table.outputs);
  });
}

void lut_gather_x_gradients_for_sequence(Stream stream, const LutSequenceXGradientArgs& a) {
  const int64_t groups = a.sequence.batch * a.table.num_tables;
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch(stream, {.grid = {lut_group_blocks(groups)}, .block = kLutBlock},
           gather_x_gradients_for_sequence_kernel<fixed>, a);
  });
}

void lut_gather_pe_gradients(Stream stream, const LutPeGradientArgs& a) {
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch_items<LutPeGradientArgs, lut::gather_pe_gradients_item<fixed>>(
        stream, a, a.unified ? a.rows : a.rows * a.num_tables);
  });
}

void lut_gather_w_gradients_for_sequence(Stream stream, const LutSequenceWGradientArgs& a) {
  const LutOwners owners = share_rows(a.table, int64_t{1} << a.sequence.num_anchors);
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch(stream, {.grid = {owners.blocks()}, .block = kLutBlock},
           gather_w_gradients_for_sequence_kernel<fixed>, a, owners);
  });
}

void lut_decode(Stream stream, const LutDecodeArgs& a) {
  launch_items<LutDecodeArgs, lut::remember_item>(stream, a, a.rows * a.table.num_tables);
  const int64_t tiles = ceil_div(a.table.outputs, lut::kPartials);
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    if (a.table.form == LutForm::fully_connected)
      launch(stream, {.grid = {a.rows * tiles}, .block = kDecodeBlock}, decode_kernel<fixed>, a, tiles);
    else
      launch_items<LutDecodeArgs, lut::decode_item<fixed>, 2>(stream, a, a.rows * a.table.outputs);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
