// Rotary embedding and attention.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/registry.h"
#include "ops/ops.h"

namespace trivium::ops {
namespace {

void check_f32(const Tensor& t, int rank, const char* what, const char* expected) {
  TRIVIUM_CHECK(t.data() && t.rank() == rank && t.dtype() == Dtype::f32 && t.is_contiguous(), what, " is ",
                t.shape(), " ", t.dtype(), ", expected contiguous float32 ", expected);
}

void check_same_device(const Tensor& a, const Tensor& b, const char* what) {
  TRIVIUM_CHECK(a.device() == b.device(), what, ": tensors on ", a.device(), " and ", b.device());
}

// i32 [count] on `device` holding first, first + 1, ...
Tensor iota(int64_t count, int32_t first, Device device) {
  Tensor t = Tensor::empty({count}, Dtype::i32);
  std::iota(t.data_as<int32_t>(), t.data_as<int32_t>() + count, first);
  return t.to(device);
}

}  // namespace

RopeFrequencies rope_frequencies(int64_t head_dim, const RopeScaling& s) {
  TRIVIUM_CHECK(head_dim > 0 && head_dim % 2 == 0, "rope: head_dim is ", head_dim,
                ", expected an even number");
  TRIVIUM_CHECK(s.theta > 1 && s.original_context > 0, "rope: theta is ", s.theta,
                " and the original context ", s.original_context,
                ", expected theta > 1 and a positive context");
  const int64_t half = head_dim / 2;
  RopeFrequencies out;
  // The pair whose wavelength makes `turns` full turns over the original context.
  const auto pair_with_turns = [&](double turns) {
    return static_cast<double>(half) * std::log(s.original_context / (turns * 2 * M_PI)) / std::log(s.theta);
  };
  double low = pair_with_turns(s.beta_fast), high = pair_with_turns(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  for (int64_t i = 0; i < half; ++i) {
    const double base = std::pow(s.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    out.inv_freq.push_back(s.factor > 1 ? base * (1 - ramp) + base / s.factor * ramp : base);
  }
  if (s.factor > 1) out.concentration = 0.1 * std::log(s.factor) + 1;
  if (s.attention_factor) out.concentration = *s.attention_factor;
  return out;
}

Tensor rope(const Tensor& x, const Tensor& positions, const RopeFrequencies& frequencies) {
  check_f32(x, 3, "rope: x", "[tokens, heads, head_dim]");
  TRIVIUM_CHECK(positions.dtype() == Dtype::i32 && positions.shape() == Shape{x.dim(0)},
                "rope: positions are ", positions.shape(), " ", positions.dtype(), ", expected int32 [",
                x.dim(0), "]");
  check_same_device(x, positions, "rope");
  TRIVIUM_CHECK(positions.is_contiguous(), "rope: positions are not contiguous");
  const int64_t half = x.dim(2) / 2;
  TRIVIUM_CHECK(x.dim(2) % 2 == 0 && static_cast<int64_t>(frequencies.inv_freq.size()) == half,
                "rope: head_dim ", x.dim(2), " needs ", half, " frequencies, got ",
                frequencies.inv_freq.size());
  Tensor inv_freq = Tensor::empty({half}, Dtype::f64);
  std::copy(frequencies.inv_freq.begin(), frequencies.inv_freq.end(), inv_freq.data_as<double>());
  inv_freq = inv_freq.to(x.device());
  Tensor table = Tensor::empty({x.dim(0), half, 2}, Dtype::f32, x.device());
  const RopeTableArgs table_args{.positions = positions.data_as<int32_t>(),
                                 .inv_freq = inv_freq.data_as<double>(),
                                 .table = table.data_as<float>(),
                                 .tokens = x.dim(0),
                                 .pairs = half,
                                 .concentration = frequencies.concentration};
  call_kernel(x.device(), &Kernels::rope_table, "rope_table", nullptr, table_args);
  Tensor y = Tensor::empty(x.shape(), Dtype::f32, x.device());
  StreamHandle* stream = is_gpu(x.device().kind) ? default_stream(x.device()) : nullptr;
  const Status copied = runtime(x.device()).copy(x.device().index, stream, y.data(), x.data(), x.nbytes());
  if (copied != Status::ok) throw_status(x.device().kind, copied);
  const RopeArgs args{.x = y.data_as<float>(),
                      .table = table.data_as<float>(),
                      .tokens = x.dim(0),
                      .heads = x.dim(1),
                      .head_dim = x.dim(2),
                      .x_stride = x.dim(1) * x.dim(2)};
  call_kernel(x.device(), &Kernels::rope, "rope", nullptr, args);
  return y;
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks, int64_t window,
                 float scale) {
  check_f32(q, 3, "attention: q", "[tokens, num_heads, head_dim]");
  TRIVIUM_CHECK(k.data() && k.rank() == 3 && v.data() && v.shape() == k.shape() && v.dtype() == k.dtype() &&
                    k.dim(2) == q.dim(2) && (k.dtype() == Dtype::f32 || k.dtype() == Dtype::bf16),
                "attention: k is ", k.shape(), " ", k.dtype(), " and v ", v.shape(), " ", v.dtype(),
                ", expected float32 or bfloat16 [positions, num_kv_heads, ", q.dim(2), "]");
  TRIVIUM_CHECK(k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0, "attention: ", q.dim(1),
                " heads are not a multiple of ", k.dim(1), " kv heads");
  TRIVIUM_CHECK(q.dim(0) <= k.dim(0), "attention: ", q.dim(0), " queries, but only ", k.dim(0), " positions");
  check_same_device(q, k, "attention");
  check_same_device(k, v, "attention");
  TRIVIUM_CHECK(window >= 0, "attention: window is ", window, ", expected >= 0");
  Tensor out = Tensor::empty(q.shape(), Dtype::f32, q.device());
  if (q.numel() == 0) return out;
  const Device device = q.device();
  // Pages of one position: [positions, num_kv_heads, 1, head_dim] is k as it lies.
  const Tensor k_pages = k.contiguous(), v_pages = v.contiguous(), table = iota(k.dim(0), 0, device);
  const Tensor positions = iota(q.dim(0), static_cast<int32_t>(k.dim(0) - q.dim(0)), device);
  const Tensor slots = Tensor::zeros({q.dim(0)}, Dtype::i32, device);
  Tensor workspace;
  if (is_gpu(device.kind))
    workspace = Tensor::empty({attention_workspace(q.dim(0), q.dim(1), q.dim(2))}, Dtype::f32, device);
  const AttentionArgs args{.q = q.data_as<float>(),
                           .kv = {.k = k_pages.data(),
                                  .v = v_pages.data(),
                                  .block_table = table.data_as<int32_t>(),
                                  .blocks_per_slot = static_cast<int32_t>(k.dim(0)),
                                  .page_size = 1,
                                  .dtype = k.dtype()},
                           .slots = slots.data_as<int32_t>(),
                           .positions = positions.data_as<int32_t>(),
                           .sinks = vector_view(sinks, q.dim(1), device, "attention: sinks"),
                           .out = out.data(),
                           .tokens = q.dim(0),
                           .num_heads = q.dim(1),
                           .num_kv_heads = k.dim(1),
                           .head_dim = q.dim(2),
                           .q_stride = q.dim(1) * q.dim(2),
                           .window = window,
                           .scale = scale,
                           .out_dtype = Dtype::f32,
                           .workspace = static_cast<float*>(workspace.data())};
  call_kernel(device, &Kernels::attention, "attention", nullptr, args);
  return out;
}

}  // namespace trivium::ops
