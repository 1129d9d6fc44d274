// The Kernels table that all GPU backends share. What is not listed is unsupported.
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// Turns `void kernel(Stream, const Args&)` into a table entry that no exception leaves.
template <class Args, void (*kernel)(Stream, const Args&)>
Status entry(StreamHandle* stream, const Args* args) {
  return guarded([&] { kernel(stream, *args); });
}

Kernels make_table() {
  Kernels t{};
  t.struct_size = sizeof(Kernels);
  t.convert = entry<ConvertArgs, convert>;
  t.embedding = entry<EmbeddingArgs, embedding>;
  t.rms_norm = entry<RmsNormArgs, rms_norm>;
  t.swiglu = entry<SwigluArgs, swiglu>;
  t.moe_route = entry<MoeRouteArgs, moe_route>;
  t.moe_permute = entry<MoePermuteArgs, moe_permute>;
  t.moe_combine = entry<MoeCombineArgs, moe_combine>;
  t.mxfp4_decode = entry<Mxfp4DecodeArgs, mxfp4_decode>;
  t.sample = entry<SampleArgs, sample>;
  t.linear = entry<LinearArgs, linear>;
  t.moe_gate_up = entry<MoeGateUpArgs, moe_gate_up>;
  t.moe_down = entry<MoeDownArgs, moe_down>;
  t.rope_table = entry<RopeTableArgs, rope_table>;
  t.rope = entry<RopeArgs, rope>;
  t.rope_kv = entry<RopeKvArgs, rope_kv>;
  t.attention = entry<AttentionArgs, attention>;
  t.lut_check_detectors = entry<LutDetectArgs, lut_check_detectors>;
  t.lut_check_positional_embeddings = entry<LutDetectPeArgs, lut_check_positional_embeddings>;
  t.lut_fill_outputs = entry<LutForwardArgs, lut_fill_outputs>;
  t.lut_gather_x_gradients = entry<LutXGradientArgs, lut_gather_x_gradients>;
  t.lut_propagate_through_detectors = entry<LutPropagateArgs, lut_propagate_through_detectors>;
  t.lut_gather_w_gradients = entry<LutWGradientArgs, lut_gather_w_gradients>;
  t.lut_fill_outputs_for_sequence = entry<LutSequenceForwardArgs, lut_fill_outputs_for_sequence>;
  t.lut_gather_x_gradients_for_sequence =
      entry<LutSequenceXGradientArgs, lut_gather_x_gradients_for_sequence>;
  t.lut_gather_pe_gradients = entry<LutPeGradientArgs, lut_gather_pe_gradients>;
  t.lut_gather_w_gradients_for_sequence =
      entry<LutSequenceWGradientArgs, lut_gather_w_gradients_for_sequence>;
  t.lut_decode = entry<LutDecodeArgs, lut_decode>;
  t.lut_product_forward = entry<LutProductArgs, lut_product_forward>;
  t.lut_product_backward = entry<LutProductArgs, lut_product_backward>;
  t.lut_mark_rows = entry<LutMarkRowsArgs, lut_mark_rows>;
  t.lut_normalize = entry<LutNormalizeArgs, lut_normalize>;
  t.lut_staged = entry<LutStagedArgs, lut_staged>;
  t.lut_admit_indices = entry<LutAdmitArgs, lut_admit_indices>;
  t.mlstm_gates = entry<MlstmGatesArgs, mlstm_gates>;
  t.mlstm_forward = entry<MlstmForwardArgs, mlstm_forward>;
  t.mlstm_backward = entry<MlstmBackwardArgs, mlstm_backward>;
  t.mlstm_recurrent = entry<MlstmRecurrentArgs, mlstm_recurrent>;
  t.mlstm_segments = entry<MlstmSegmentsArgs, mlstm_segments>;
  t.head_norm = entry<HeadNormArgs, head_norm>;
  t.silu_mul = entry<SiluMulArgs, silu_mul>;
  t.soft_cap = entry<SoftCapArgs, soft_cap>;
  return t;
}

}  // namespace

const Kernels& kernel_table() {
  static const Kernels table = make_table();
  return table;
}

}  // namespace trivium::TRIVIUM_GPU_NS
