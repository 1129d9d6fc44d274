// The staged data flow of LUT layers, a cross-check at small sizes; see ops/lut_staged_items.h.
#include "cuda/kernels.h"
#include "cuda/lut.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

GPU_KERNEL(kLutBlock, 4)
void staged_gather_w_gradients_kernel(LutStagedArgs a, LutOwners owners) {
  lut::WOwner owner;
  if (!find_owner(owners, owner)) return;
  if (a.stage == LutStage::gather_w_gradients)
    lut::staged_gather_w_gradients_item(a, owner);
  else
    lut::staged_gather_w_gradients_for_sequence_item(a, owner);
}

template <void (*item)(const LutStagedArgs&, int64_t)>
void stage(Stream stream, const LutStagedArgs& a, int64_t count) {
  launch_items<LutStagedArgs, item>(stream, a, count);
}

void staged_rows(Stream stream, const LutStagedArgs& a) {
  const int64_t detectors = a.rows * a.table.num_tables;
  switch (a.stage) {
    case LutStage::fire_detectors:
      return stage<lut::fire_detectors_item>(stream, a, detectors);
    case LutStage::fire_detectors_by_lookup_indices:
      return stage<lut::fire_detectors_by_lookup_indices_item>(stream, a, detectors);
    case LutStage::fill_outputs_by_forward_groups:
      return stage<lut::fill_outputs_by_forward_groups_item>(stream, a, a.rows * a.table.outputs);
    case LutStage::gather_gradients:
      return stage<lut::gather_gradients_item>(stream, a, detectors);
    default:
      return stage<lut::staged_propagate_item>(stream, a, detectors);
  }
}

void staged_sequences(Stream stream, const LutStagedArgs& a) {
  const LutSequence& s = a.sequence;
  const int64_t rows = s.batch * s.length, num_tables = a.table.num_tables;
  const int64_t events = s.batch * num_tables * s.length * (s.length - 1) / 2;
  switch (a.stage) {
    case LutStage::fill_after_detectors_firing_stat:
      return stage<lut::fill_after_detectors_firing_stat_item>(stream, a, rows * num_tables);
    case LutStage::densify_firing_stat:
      return stage<lut::densify_firing_stat_item>(stream, a, rows * num_tables);
    case LutStage::fill_outputs_by_sparse_firings:
      return stage<lut::fill_outputs_by_sparse_firings_item>(stream, a, rows * a.table.outputs);
    case LutStage::gather_gradients_for_sequence:
      return stage<lut::gather_gradients_for_sequence_item>(stream, a, a.part ? 2 * events : events);
    default:
      return stage<lut::propagate_through_detectors_for_sequence_item>(stream, a, s.batch * num_tables);
  }
}

}  // namespace

void lut_staged(Stream stream, const LutStagedArgs& a) {
  if (a.stage == LutStage::gather_w_gradients || a.stage == LutStage::gather_w_gradients_for_sequence) {
    const LutOwners owners = share_rows(a.table, a.table.cells);
    launch(stream, {.grid = {owners.blocks()}, .block = kLutBlock}, staged_gather_w_gradients_kernel, a,
           owners);
  } else if (a.stage < LutStage::fill_after_detectors_firing_stat) {
    staged_rows(stream, a);
  } else {
    staged_sequences(stream, a);
  }
}

}  // namespace trivium::TRIVIUM_GPU_NS
