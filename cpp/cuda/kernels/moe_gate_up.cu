// The first product of the experts with its activation (ops/args.h: MoeGateUpArgs). Gate and linear columns
// are interleaved, so a pair of columns becomes one value where the product is written.
#include "cuda/gemm_launch.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {

void moe_gate_up(Stream stream, const MoeGateUpArgs& a) {
  const GemmArgs args{.x = a.x,
                      .tokens_of_row = a.tokens_of_row,
                      .w = a.w,
                      .bias = a.bias,
                      .offsets = a.offsets,
                      .y = a.act,
                      .m = a.rows,
                      .n = 2 * a.inter,
                      .k = a.hidden,
                      .x_stride = a.hidden,
                      .y_stride = a.inter,
                      .num_experts = a.num_experts,
                      .alpha = a.alpha,
                      .limit = a.limit};
  gemm<true>(stream, args, a.dtype, "moe_gate_up");
}

}  // namespace trivium::TRIVIUM_GPU_NS
