// y = x w^T + bias for dense layers and for the second product of the experts (ops/args.h: LinearArgs,
// MoeDownArgs).
#include "cuda/gemm_launch.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {

void linear(Stream stream, const LinearArgs& a) {
  const GemmArgs args{.x = a.x,
                      .w = a.w,
                      .bias = a.bias,
                      .y = a.y,
                      .m = a.m,
                      .n = a.n,
                      .k = a.k,
                      .x_stride = a.x_stride,
                      .y_stride = a.y_stride,
                      .num_experts = 1,
                      .accumulate = a.accumulate};
  gemm<false>(stream, args, a.x_dtype, "linear");
}

void moe_down(Stream stream, const MoeDownArgs& a) {
  const GemmArgs args{.x = a.act,
                      .w = a.w,
                      .bias = a.bias,
                      .offsets = a.offsets,
                      .y = a.y,
                      .m = a.rows,
                      .n = a.hidden,
                      .k = a.inter,
                      .x_stride = a.inter,
                      .y_stride = a.hidden,
                      .num_experts = a.num_experts};
  gemm<false>(stream, args, a.dtype, "moe_down");
}

}  // namespace trivium::TRIVIUM_GPU_NS
