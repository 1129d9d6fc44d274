// Every public op (trivium/ops.py), on anything tensor_from_python accepts.
#include "ops/ops.h"

#include <pybind11/stl.h>

#include <cmath>
#include <variant>

#include "bindings.h"
#include "ops/sampling.h"

namespace trivium::python {
namespace {

using Optional = std::optional<ArrayLike>;
using PerRow = std::variant<uint64_t, std::vector<uint64_t>>;

// int32 from int64, the type Python lists and numpy give indices.
Tensor indices(const Tensor& t, const char* what) {
  if (t.dtype() != Dtype::i64) return t;
  const Tensor source = t.contiguous(), out = Tensor::empty(t.shape(), Dtype::i32);
  TRIVIUM_CHECK(t.device() == Device{}, what, ": int64 indices on ", t.device(), "; convert them to int32");
  for (int64_t i = 0; i < t.numel(); ++i) {
    const int64_t value = source.data_as<int64_t>()[i];
    TRIVIUM_CHECK(value == static_cast<int32_t>(value), what, ": index ", value, " does not fit in 32 bits");
    out.data_as<int32_t>()[i] = static_cast<int32_t>(value);
  }
  return out;
}

// Dense, or MXFP4 blocks when there are scales.
ops::Weight weight(const OnDevice& on, const ArrayLike& data, const Optional& scales, const char* what) {
  return scales ? ops::Weight::mxfp4(on(data), on(scales), what) : ops::Weight::dense(on(data), what);
}

uint64_t row_value(const PerRow& values, size_t row, size_t rows, const char* what) {
  if (const auto* one = std::get_if<uint64_t>(&values)) return *one;
  const auto& list = std::get<std::vector<uint64_t>>(values);
  TRIVIUM_CHECK(list.size() == rows, "sample: ", list.size(), " values of ", what, " for ", rows, " rows");
  return list[row];
}

std::vector<int32_t> sample(const ArrayLike& logits, float temperature, float top_p, int32_t top_k,
                            float min_p, const PerRow& seed, const PerRow& step, const OnDevice& on) {
  const Tensor& t = logits.tensor;
  TRIVIUM_CHECK(t.rank() == 2, "sample: logits is ", t.shape(), ", expected [rows, vocab]");
  const auto n = static_cast<size_t>(t.dim(0));
  std::vector<ops::SampleRow> rows;
  for (size_t r = 0; r < n; ++r)
    rows.push_back({.params = {.temperature = temperature,
                               .top_p = top_p,
                               .top_k = top_k,
                               .min_p = min_p,
                               .seed = row_value(seed, r, n, "seed")},
                    .step = row_value(step, r, n, "step")});
  std::vector<int32_t> tokens(n);
  ops::sample(on(t), rows, tokens);
  return tokens;
}

std::pair<std::vector<double>, double> rope_frequencies(int64_t head_dim, double theta, double factor,
                                                        double beta_fast, double beta_slow,
                                                        double original_context, bool truncate,
                                                        std::optional<double> attention_factor) {
  auto f = ops::rope_frequencies(head_dim, {.theta = theta,
                                            .factor = factor,
                                            .beta_fast = beta_fast,
                                            .beta_slow = beta_slow,
                                            .original_context = original_context,
                                            .truncate = truncate,
                                            .attention_factor = attention_factor});
  return {std::move(f.inv_freq), f.concentration};
}

using Release = py::call_guard<py::gil_scoped_release>;

void register_dense(py::module_& m) {
  m.def(
      "embedding",
      [](const ArrayLike& ids, const ArrayLike& table, const OnDevice& on) {
        return ops::embedding(on(indices(ids.tensor, "embedding: ids")), on(table));
      },
      py::arg("ids"), py::arg("table"), py::kw_only(), py::arg("device") = py::none(), Release(),
      "Rows `ids` int [tokens] of table [vocab, dim] -> float32 [tokens, dim].");
  m.def(
      "rms_norm",
      [](const ArrayLike& x, const ArrayLike& w, float eps, const OnDevice& on) {
        return ops::rms_norm(on(x), on(w), eps);
      },
      py::arg("x"), py::arg("w"), py::arg("eps") = 1e-5f, py::kw_only(), py::arg("device") = py::none(),
      Release(),
      "w * x / sqrt(mean(x^2) + eps) over the last dimension; x [..., dim] float32 or bfloat16, w [dim].");
  m.def(
      "linear",
      [](const ArrayLike& x, const ArrayLike& w, const Optional& bias, const Optional& scales,
         const OnDevice& on) { return ops::linear(on(x), weight(on, w, scales, "linear: w"), on(bias)); },
      py::arg("x"), py::arg("w"), py::arg("bias") = py::none(), py::kw_only(), py::arg("scales") = py::none(),
      py::arg("device") = py::none(), Release(),
      "x w^T + bias: x [m, k], w [n, k] -> float32 [m, n]. With scales, w holds MXFP4 blocks uint8 [n, k/32, "
      "16].");
  m.def(
      "swiglu",
      [](const ArrayLike& x, float alpha, float limit, const OnDevice& on) {
        return ops::swiglu(on(x), alpha, limit);
      },
      py::arg("x"), py::arg("alpha") = 1.702f, py::arg("limit") = 7.0f, py::kw_only(),
      py::arg("device") = py::none(), Release(),
      "g sigmoid(alpha g) (u + 1) of clamped interleaved pairs (g, u): float32 [..., 2 dim] -> [..., dim].");
  m.def(
      "mxfp4_decode",
      [](const ArrayLike& blocks, const ArrayLike& scales, const OnDevice& on) {
        return ops::mxfp4_decode(on(blocks), on(scales));
      },
      py::arg("blocks"), py::arg("scales"), py::kw_only(), py::arg("device") = py::none(), Release(),
      "Exact float32 values of MXFP4: blocks uint8 [..., rows, cols/32, 16], scales uint8 [..., rows, "
      "cols/32].");
}

void register_attention(py::module_& m) {
  m.def("rope_frequencies", rope_frequencies, py::arg("head_dim"), py::kw_only(), py::arg("theta") = 150000.0,
        py::arg("factor") = 1.0, py::arg("beta_fast") = 32.0, py::arg("beta_slow") = 1.0,
        py::arg("original_context") = 4096.0, py::arg("truncate") = false,
        py::arg("attention_factor") = py::none(),
        "(inv_freq [head_dim / 2], concentration) of rotary embedding with YaRN scaling; factor <= 1 is "
        "plain RoPE.");
  m.def(
      "rope",
      [](const ArrayLike& x, const ArrayLike& positions, const std::vector<double>& inv_freq,
         double concentration, const OnDevice& on) {
        return ops::rope(on(x), on(indices(positions.tensor, "rope: positions")), {inv_freq, concentration});
      },
      py::arg("x"), py::arg("positions"), py::arg("inv_freq"), py::arg("concentration") = 1.0, py::kw_only(),
      py::arg("device") = py::none(), Release(),
      "x float32 [tokens, heads, head_dim] rotated to positions int [tokens]; pairs (i, i + head_dim/2).");
  m.def(
      "attention",
      [](const ArrayLike& q, const ArrayLike& k, const ArrayLike& v, const Optional& sinks, int64_t window,
         std::optional<float> scale, const OnDevice& on) {
        TRIVIUM_CHECK(q.tensor.rank() == 3, "attention: q is ", q.tensor.shape(),
                      ", expected [tokens, heads, head_dim]");
        const float by_size = 1.0f / std::sqrt(static_cast<float>(q.tensor.dim(2)));
        return ops::attention(on(q), on(k), on(v), on(sinks), window, scale.value_or(by_size));
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("sinks") = py::none(), py::arg("window") = 0,
      py::arg("scale") = py::none(), py::kw_only(), py::arg("device") = py::none(), Release(),
      "Causal attention: q [tokens, num_heads, head_dim] are the last positions of k, v [positions, "
      "num_kv_heads, "
      "head_dim]; sinks [num_heads] join the softmax denominator; window 0 sees all; scale defaults to "
      "head_dim^-1/2.");
}

void register_moe(py::module_& m) {
  m.def(
      "moe_route",
      [](const ArrayLike& logits, int64_t top_k, const OnDevice& on) {
        ops::Routing r = ops::moe_route(on(logits), top_k);
        return std::pair{std::move(r.experts), std::move(r.weights)};
      },
      py::arg("logits"), py::arg("top_k"), py::kw_only(), py::arg("device") = py::none(), Release(),
      "(experts int32, weights float32) [tokens, top_k]: the largest logits, ties to the lower index, and "
      "their softmax.");
  m.def(
      "moe_experts",
      [](const ArrayLike& x, const ArrayLike& experts, const ArrayLike& weights, const ArrayLike& gate_up,
         const ArrayLike& down, const Optional& gate_up_bias, const Optional& down_bias,
         const Optional& gate_up_scales, const Optional& down_scales, float alpha, float limit,
         const OnDevice& on) {
        return ops::moe_experts(on(x), {on(indices(experts.tensor, "moe_experts: experts")), on(weights)},
                                {.gate_up = weight(on, gate_up, gate_up_scales, "moe_experts: gate_up"),
                                 .down = weight(on, down, down_scales, "moe_experts: down"),
                                 .gate_up_bias = on(gate_up_bias),
                                 .down_bias = on(down_bias),
                                 .alpha = alpha,
                                 .limit = limit});
      },
      py::arg("x"), py::arg("experts"), py::arg("weights"), py::arg("gate_up"), py::arg("down"),
      py::arg("gate_up_bias") = py::none(), py::arg("down_bias") = py::none(), py::kw_only(),
      py::arg("gate_up_scales") = py::none(), py::arg("down_scales") = py::none(), py::arg("alpha") = 1.702f,
      py::arg("limit") = 7.0f, py::arg("device") = py::none(), Release(),
      "Weighted sum of the routed experts' outputs: x [tokens, hidden], gate_up [experts, 2 inter, hidden] "
      "(rows "
      "interleaved), down [experts, hidden, inter] -> float32 [tokens, hidden]. With scales, MXFP4 blocks.");
}

}  // namespace

void register_ops(py::module_& m) {
  register_dense(m);
  register_attention(m);
  register_moe(m);
  m.def("sample", sample, py::arg("logits"), py::kw_only(), py::arg("temperature") = 0.0f,
        py::arg("top_p") = 1.0f, py::arg("top_k") = 0, py::arg("min_p") = 0.0f, py::arg("seed") = 0,
        py::arg("step") = 0, py::arg("device") = py::none(), Release(),
        "One token id per row of logits float32 [rows, vocab], -1 for a row with NaN; seed and step may be a "
        "list with one value a row.");
}

}  // namespace trivium::python
