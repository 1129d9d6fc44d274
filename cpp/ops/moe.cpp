// Routing and the experts of a mixture layer.
#include <vector>

#include "core/registry.h"
#include "ops/ops.h"

namespace trivium::ops {

Routing moe_route(const Tensor& logits, int64_t top_k) {
  TRIVIUM_CHECK(logits.data() && logits.rank() == 2 && logits.dtype() == Dtype::f32 && logits.is_contiguous(),
                "moe_route: logits are ", logits.shape(), " ", logits.dtype(),
                ", expected contiguous float32 [tokens, num_experts]");
  TRIVIUM_CHECK(1 <= top_k && top_k <= logits.dim(1), "moe_route: top_k is ", top_k, ", expected 1 to ",
                logits.dim(1));
  Routing r{Tensor::empty({logits.dim(0), top_k}, Dtype::i32, logits.device()),
            Tensor::empty({logits.dim(0), top_k}, Dtype::f32, logits.device())};
  const MoeRouteArgs args{.logits = logits.data_as<float>(),
                          .experts = r.experts.data_as<int32_t>(),
                          .weights = r.weights.data_as<float>(),
                          .tokens = logits.dim(0),
                          .num_experts = logits.dim(1),
                          .top_k = top_k};
  call_kernel(logits.device(), &Kernels::moe_route, "moe_route", nullptr, args);
  return r;
}

namespace {

void check_experts(const Tensor& x, const Routing& routing, const Experts& e) {
  TRIVIUM_CHECK(
      x.data() && x.rank() == 2 && x.is_contiguous() && (x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16),
      "moe_experts: x is ", x.shape(), " ", x.dtype(), ", expected float32 or bfloat16 [tokens, hidden]");
  const Shape& up = e.gate_up.shape;
  const Shape& down = e.down.shape;
  TRIVIUM_CHECK(up.rank() == 3 && down.rank() == 3 && up[0] == down[0] && up[1] == 2 * down[2] &&
                    up[2] == x.dim(1) && down[1] == x.dim(1),
                "moe_experts: gate_up is ", up, " and down ", down, " for x ", x.shape(),
                ", expected [num_experts, 2 inter, hidden] and [num_experts, hidden, inter]");
  TRIVIUM_CHECK(routing.experts.rank() == 2 && routing.experts.dim(0) == x.dim(0) &&
                    routing.experts.dtype() == Dtype::i32 &&
                    routing.weights.shape() == routing.experts.shape() &&
                    routing.weights.dtype() == Dtype::f32 && routing.experts.is_contiguous() &&
                    routing.weights.is_contiguous(),
                "moe_experts: experts are ", routing.experts.shape(), " and weights ",
                routing.weights.shape(), ", expected contiguous int32 and float32 [", x.dim(0), ", top_k]");
  for (const Tensor* t : {&routing.experts, &routing.weights, &e.gate_up.data, &e.down.data})
    TRIVIUM_CHECK(t->device() == x.device(), "moe_experts: tensors on ", x.device(), " and ", t->device());
  const Tensor chosen = routing.experts.to(Device{});
  for (int64_t i = 0; i < chosen.numel(); ++i) {
    const int32_t expert = chosen.data_as<int32_t>()[i];
    TRIVIUM_CHECK(0 <= expert && expert < up[0], "moe_experts: expert ", expert, " of ", up[0]);
  }
}

}  // namespace

Tensor moe_experts(const Tensor& x, const Routing& routing, const Experts& e) {
  check_experts(x, routing, e);
  const Device device = x.device();
  const int64_t tokens = x.dim(0), hidden = x.dim(1), inter = e.down.shape[2], num_experts = e.down.shape[0];
  const int64_t top_k = routing.experts.dim(1), rows = tokens * top_k;
  const Tensor offsets = Tensor::empty({num_experts + 1}, Dtype::i32, device);
  const Tensor tokens_of_row = Tensor::empty({rows}, Dtype::i32, device),
               row_of_choice = Tensor::empty({rows}, Dtype::i32, device);
  const Tensor act = Tensor::empty({rows, inter}, x.dtype(), device),
               y = Tensor::empty({rows, hidden}, Dtype::f32, device);
  Tensor out = Tensor::zeros({tokens, hidden}, Dtype::f32, device);
  const MoePermuteArgs permute{routing.experts.data_as<int32_t>(),
                               offsets.data_as<int32_t>(),
                               tokens_of_row.data_as<int32_t>(),
                               row_of_choice.data_as<int32_t>(),
                               tokens,
                               num_experts,
                               top_k};
  call_kernel(device, &Kernels::moe_permute, "moe_permute", nullptr, permute);
  const MoeGateUpArgs gate_up{
      .x = x.data(),
      .w = e.gate_up.view(),
      .bias = vector_view(e.gate_up_bias, num_experts * 2 * inter, device, "moe_experts: gate_up_bias"),
      .offsets = permute.offsets,
      .tokens_of_row = permute.tokens_of_row,
      .act = act.data(),
      .rows = rows,
      .num_experts = num_experts,
      .hidden = hidden,
      .inter = inter,
      .alpha = e.alpha,
      .limit = e.limit,
      .dtype = x.dtype()};
  call_kernel(device, &Kernels::moe_gate_up, "moe_gate_up", nullptr, gate_up);
  const MoeDownArgs down{
      .act = act.data(),
      .w = e.down.view(),
      .bias = vector_view(e.down_bias, num_experts * hidden, device, "moe_experts: down_bias"),
      .offsets = permute.offsets,
      .y = y.data_as<float>(),
      .rows = rows,
      .num_experts = num_experts,
      .hidden = hidden,
      .inter = inter,
      .dtype = x.dtype()};
  call_kernel(device, &Kernels::moe_down, "moe_down", nullptr, down);
  const MoeCombineArgs combine{y.data_as<float>(),
                               routing.weights.data_as<float>(),
                               permute.row_of_choice,
                               out.data_as<float>(),
                               tokens,
                               hidden,
                               top_k};
  call_kernel(device, &Kernels::moe_combine, "moe_combine", nullptr, combine);
  return out;
}

}  // namespace trivium::ops
