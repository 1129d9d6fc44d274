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
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch_items<LutDecodeArgs, lut::decode_item<fixed>, 4>(stream, a, a.rows * a.table.outputs);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
