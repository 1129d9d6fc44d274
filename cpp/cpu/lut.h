// The LUT kernels of the CPU: those of the current level for fully connected tables in float mode, items of
// ops/lut_items.h for the rest.
#pragma once

#include "ops/lut_args.h"

namespace trivium::cpu {

// fn<fixed>(): whether sums are in fixed point.
template <class Fn>
void lut_dispatch(const LutNumerics& numerics, const Fn& fn) {
  if (numerics.rescale > 0)
    fn.template operator()<true>();
  else
    fn.template operator()<false>();
}

void lut_check_detectors(const LutDetectArgs&);
void lut_check_positional_embeddings(const LutDetectPeArgs&);
void lut_fill_outputs(const LutForwardArgs&);
void lut_gather_x_gradients(const LutXGradientArgs&);
void lut_propagate_through_detectors(const LutPropagateArgs&);
void lut_gather_w_gradients(const LutWGradientArgs&);
void lut_fill_outputs_for_sequence(const LutSequenceForwardArgs&);
void lut_gather_x_gradients_for_sequence(const LutSequenceXGradientArgs&);
void lut_gather_pe_gradients(const LutPeGradientArgs&);
void lut_gather_w_gradients_for_sequence(const LutSequenceWGradientArgs&);
void lut_decode(const LutDecodeArgs&);
void lut_product_forward(const LutProductArgs&);
void lut_product_backward(const LutProductArgs&);
void lut_mark_rows(const LutMarkRowsArgs&);
void lut_normalize(const LutNormalizeArgs&);
// lut_outputs.cpp: of sparse tables, or in fixed point.
void lut_fill_outputs_by_rows(const LutForwardArgs&);
void lut_fill_outputs_for_sequence_by_rows(const LutSequenceForwardArgs&);
void lut_decode_by_rows(const LutDecodeArgs&);
void lut_staged(const LutStagedArgs&);
void lut_admit_indices(const LutAdmitArgs&);

}  // namespace trivium::cpu
