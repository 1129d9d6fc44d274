// Host entries of the GPU kernels, one line each: every .cu of kernels.cmake ends with its entry.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

const Kernels& kernel_table();  // kernel_table.cu

void convert(Stream stream, const ConvertArgs& a);
void embedding(Stream stream, const EmbeddingArgs& a);
void rms_norm(Stream stream, const RmsNormArgs& a);
void linear(Stream stream, const LinearArgs& a);
void rope_table(Stream stream, const RopeTableArgs& a);
void rope(Stream stream, const RopeArgs& a);
void rope_kv(Stream stream, const RopeKvArgs& a);
void attention(Stream stream, const AttentionArgs& a);
void swiglu(Stream stream, const SwigluArgs& a);
void moe_route(Stream stream, const MoeRouteArgs& a);
void moe_permute(Stream stream, const MoePermuteArgs& a);
void moe_gate_up(Stream stream, const MoeGateUpArgs& a);
void moe_down(Stream stream, const MoeDownArgs& a);
void lut_check_detectors(Stream, const LutDetectArgs&);
void lut_check_positional_embeddings(Stream, const LutDetectPeArgs&);
void lut_fill_outputs(Stream, const LutForwardArgs&);
void lut_gather_x_gradients(Stream, const LutXGradientArgs&);
void lut_propagate_through_detectors(Stream, const LutPropagateArgs&);
void lut_gather_w_gradients(Stream, const LutWGradientArgs&);
void lut_fill_outputs_for_sequence(Stream, const LutSequenceForwardArgs&);
void lut_gather_x_gradients_for_sequence(Stream, const LutSequenceXGradientArgs&);
void lut_gather_pe_gradients(Stream, const LutPeGradientArgs&);
void lut_gather_w_gradients_for_sequence(Stream, const LutSequenceWGradientArgs&);
void lut_decode(Stream, const LutDecodeArgs&);
void lut_product_forward(Stream, const LutProductArgs&);
void lut_product_backward(Stream, const LutProductArgs&);
void lut_mark_rows(Stream, const LutMarkRowsArgs&);
void lut_normalize(Stream, const LutNormalizeArgs&);
void lut_staged(Stream, const LutStagedArgs&);
void lut_admit_indices(Stream, const LutAdmitArgs&);
void moe_combine(Stream stream, const MoeCombineArgs& a);
void mxfp4_decode(Stream stream, const Mxfp4DecodeArgs& a);
void sample(Stream stream, const SampleArgs& a);
void mlstm_gates(Stream stream, const MlstmGatesArgs& a);
void mlstm_forward(Stream stream, const MlstmForwardArgs& a);
void mlstm_backward(Stream stream, const MlstmBackwardArgs& a);
void mlstm_recurrent(Stream stream, const MlstmRecurrentArgs& a);
void mlstm_segments(Stream stream, const MlstmSegmentsArgs& a);
void head_norm(Stream stream, const HeadNormArgs& a);
void silu_mul(Stream stream, const SiluMulArgs& a);
void soft_cap(Stream stream, const SoftCapArgs& a);

}  // namespace trivium::TRIVIUM_GPU_NS
