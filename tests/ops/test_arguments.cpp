// Arguments that do not fit are refused with one sentence that names the argument, what came and what was
// expected.
#include <cmath>

#include "ops/ops.h"
#include "ops/sampling.h"
#include "support/backend.h"

namespace trivium::testing {
namespace {

using ops::Weight;

Tensor f32(const Shape& shape) { return Tensor::zeros(shape, Dtype::f32, test_device()); }
Tensor of(Dtype dtype, const Shape& shape) { return Tensor::zeros(shape, dtype, test_device()); }
Tensor transposed(int64_t rows, int64_t cols) {  // [rows, cols] with swapped strides
  const Tensor t = f32({cols, rows});
  const int64_t strides[] = {1, rows};
  return Tensor::wrap(t.data(), {rows, cols}, Dtype::f32, t.device(), t.owner(), strides);
}

TEST(Arguments, OfEmbedding) {
  const Tensor table = f32({4, 3});
  expect_error(
      [&] {
        ops::embedding(of(Dtype::i32, {2, 2}), table);
      },
      {"embedding: ids", "[2, 2]", "int32 [tokens]"});
  expect_error([&] { ops::embedding(of(Dtype::i64, {2}), table); }, {"embedding: ids", "int64"});
  expect_error([&] { ops::embedding(of(Dtype::i32, {2}), f32({4})); },
               {"embedding: table", "[4]", "[vocab, dim]"});
  expect_error([&] { ops::embedding(of(Dtype::i32, {2}), transposed(4, 3)); },
               {"embedding: table", "not contiguous"});
  expect_error([&] { ops::embedding(of(Dtype::i32, {2}), of(Dtype::i32, {4, 3})); }, {"embedding", "int32"});
  for (const int32_t id : {-1, 4, INT32_MAX, INT32_MIN})
    expect_error(
        [&] {
          ops::embedding(device_tensor<int32_t>({2}, {0, id}), table);
        },
        {"embedding: ids[1]", concat(id), "4 rows"});
}

TEST(Arguments, OfRmsNorm) {
  expect_error(
      [] {
        ops::rms_norm(of(Dtype::f16, {2, 3}), f32({3}), 1e-5f);
      },
      {"rms_norm: x", "float16", "[2, 3]"});
  expect_error([] { ops::rms_norm(f32({}), f32({1}), 1e-5f); }, {"rms_norm: x", "[]"});
  expect_error([] { ops::rms_norm(f32({2, 3}), f32({4}), 1e-5f); }, {"rms_norm: w", "[4]", "3 elements"});
  expect_error([] { ops::rms_norm(f32({2, 3}), of(Dtype::i32, {3}), 1e-5f); }, {"rms_norm: w", "int32"});
  expect_error([] { ops::rms_norm(transposed(2, 3), f32({3}), 1e-5f); }, {"rms_norm: x", "not contiguous"});
  expect_error([] { ops::rms_norm(f32({2, 3}), f32({3}), -1.0f); }, {"rms_norm: eps", "-1"});
  expect_error([] { ops::rms_norm(f32({2, 3}), f32({3}), NAN); }, {"rms_norm: eps", "nan"});
}

TEST(Arguments, OfAddRmsNorm) {
  const auto call = [](Tensor x, const Tensor& add, const Tensor& w, Tensor y, float eps = 1e-5f) {
    return [=]() mutable { ops::add_rms_norm(nullptr, x, add, w, eps, y); };
  };
  const Tensor x = f32({2, 3}), w = f32({3});
  expect_error(call(of(Dtype::bf16, {2, 3}), x, w, x), {"add_rms_norm: x is [2, 3] bfloat16", "float32"});
  expect_error(call(f32({}), f32({}), w, x), {"add_rms_norm: x is []"});
  expect_error(call(transposed(2, 3), x, w, x), {"add_rms_norm: x", "contiguous"});
  expect_error(call(x, f32({3, 2}), w, x), {"add_rms_norm: add is [3, 2]", "[2, 3]"});
  expect_error(call(x, of(Dtype::bf16, {2, 3}), w, x), {"add_rms_norm: add", "bfloat16"});
  expect_error(call(x, x, f32({2}), x), {"add_rms_norm: w", "[2]", "3 elements"});
  expect_error(call(x, x, w, f32({2, 4})), {"add_rms_norm: y is [2, 4]", "[2, 3]"});
  expect_error(call(x, x, w, of(Dtype::f16, {2, 3})), {"add_rms_norm: y", "float16"});
  expect_error(call(x, x, w, x, NAN), {"add_rms_norm: eps", "nan"});
}

TEST(Arguments, OfLinear) {
  const Weight w = Weight::dense(f32({4, 3}), "w");
  expect_error(
      [&] {
        ops::linear(f32({2, 5}), w);
      },
      {"linear: x is [2, 5] and w [4, 3]", "[m, k] and [n, k]"});
  expect_error([&] { ops::linear(f32({3}), w); }, {"linear: x is [3]"});
  expect_error([&] { ops::linear(of(Dtype::f16, {2, 3}), w); }, {"linear: x", "float16"});
  expect_error([&] { ops::linear(transposed(2, 3), w); }, {"linear: x", "not contiguous"});
  expect_error([&] { ops::linear(f32({2, 3}), w, f32({5})); }, {"linear: bias", "[5]", "4 elements"});
  expect_error([&] { ops::linear(f32({2, 3}), w, of(Dtype::u8, {4})); }, {"linear: bias", "uint8"});
  expect_error(
      [&] {
        ops::linear(f32({2, 3}), Weight::dense(f32({2, 4, 3}), "w"));
      },
      {"linear", "w [2, 4, 3]"});
  Tensor y = f32({2, 6});
  expect_error([&] { ops::linear(nullptr, f32({2, 3}), w, {}, y, 3); }, {"linear: y is [2, 6]", "column 3"});
}

TEST(Arguments, OfWeights) {
  expect_error([] { Weight::dense(f32({4}), "gate"); }, {"gate is [4]", "[rows, cols]"});
  expect_error([] { Weight::dense(of(Dtype::f64, {4, 4}), "gate"); }, {"gate", "float64", "bfloat16"});
  expect_error([] { Weight::dense(transposed(4, 3), "gate"); }, {"gate", "not contiguous"});
  const Tensor blocks = of(Dtype::u8, {4, 2, 16});
  expect_error(
      [&] {
        Weight::mxfp4(blocks, of(Dtype::u8, {4, 3}), "up");
      },
      {"up: blocks [4, 2, 16] and scales [4, 3]"});
  expect_error([&] { Weight::mxfp4(blocks, of(Dtype::u8, {4, 2, 1}), "up"); }, {"up: blocks", "[4, 2, 1]"});
  expect_error(
      [&] {
        Weight::mxfp4(of(Dtype::u8, {4, 2, 15}), of(Dtype::u8, {4, 2}), "up");
      },
      {"up", "[4, 2, 15]"});
  expect_error([&] { Weight::mxfp4(blocks, of(Dtype::i8, {4, 2}), "up"); }, {"up", "int8", "expected uint8"});
  expect_error(
      [&] {
        ops::mxfp4_decode(f32({4, 2, 16}), of(Dtype::u8, {4, 2}));
      },
      {"mxfp4_decode", "float32"});
}

TEST(Arguments, OfRope) {
  const auto f = ops::rope_frequencies(4, {});
  expect_error(
      [&] {
        ops::rope(f32({2, 3}), of(Dtype::i32, {2}), f);
      },
      {"rope: x is [2, 3]", "[tokens, heads, head_dim]"});
  expect_error(
      [&] {
        ops::rope(of(Dtype::bf16, {2, 3, 4}), of(Dtype::i32, {2}), f);
      },
      {"rope: x", "bfloat16"});
  expect_error(
      [&] {
        ops::rope(f32({2, 3, 4}), of(Dtype::i32, {3}), f);
      },
      {"rope: positions", "[3]", "int32 [2]"});
  expect_error([&] { ops::rope(f32({2, 3, 4}), of(Dtype::i64, {2}), f); }, {"rope: positions", "int64"});
  expect_error(
      [&] {
        ops::rope(f32({2, 3, 6}), of(Dtype::i32, {2}), f);
      },
      {"rope: head_dim 6", "3 frequencies", "2"});
  expect_error([&] { ops::rope(f32({2, 3, 5}), of(Dtype::i32, {2}), f); }, {"rope: head_dim 5"});
  for (const int64_t odd : {-2, 0, 7})
    expect_error([&] { ops::rope_frequencies(odd, {}); }, {"rope: head_dim", concat(odd), "even"});
  expect_error([] { ops::rope_frequencies(4, {.theta = 1, .attention_factor = {}}); }, {"rope: theta is 1"});
  expect_error([] { ops::rope_frequencies(4, {.original_context = 0, .attention_factor = {}}); },
               {"original context 0"});
}

TEST(Arguments, OfAttention) {
  const auto call = [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sinks = {},
                       int64_t window = 0) { return [=] { ops::attention(q, k, v, sinks, window, 1.0f); }; };
  const Tensor q = f32({2, 4, 8}), k = f32({3, 2, 8});
  expect_error(call(f32({2, 4}), k, k), {"attention: q is [2, 4]", "[tokens, num_heads, head_dim]"});
  expect_error(call(of(Dtype::bf16, {2, 4, 8}), k, k), {"attention: q", "bfloat16"});
  expect_error(call(q, f32({3, 2, 7}), f32({3, 2, 7})), {"attention: k is [3, 2, 7]", "num_kv_heads, 8]"});
  expect_error(call(q, k, f32({4, 2, 8})), {"attention: k is [3, 2, 8]", "v [4, 2, 8]"});
  expect_error(call(q, k, of(Dtype::bf16, {3, 2, 8})), {"attention", "bfloat16"});
  expect_error(call(q, of(Dtype::f16, {3, 2, 8}), of(Dtype::f16, {3, 2, 8})), {"attention", "float16"});
  expect_error(call(q, f32({3, 3, 8}), f32({3, 3, 8})), {"attention: 4 heads", "3 kv heads"});
  expect_error(call(q, f32({3, 0, 8}), f32({3, 0, 8})), {"attention: 4 heads", "0 kv heads"});
  expect_error(call(q, f32({1, 2, 8}), f32({1, 2, 8})), {"attention: 2 queries", "1 positions"});
  expect_error(call(q, k, k, f32({3})), {"attention: sinks", "[3]", "4 elements"});
  expect_error(call(q, k, k, {}, -1), {"attention: window is -1"});
}

TEST(Arguments, OfSwiglu) {
  expect_error([] { ops::swiglu(f32({2, 3})); }, {"swiglu: x is [2, 3]", "[..., 2 dim]"});
  expect_error([] { ops::swiglu(of(Dtype::bf16, {2, 4})); }, {"swiglu: x", "bfloat16"});
  expect_error([] { ops::swiglu(f32({})); }, {"swiglu: x is []"});
  expect_error([] { ops::swiglu(transposed(2, 4)); }, {"swiglu: x", "not contiguous"});
}

TEST(Arguments, OfMoeRoute) {
  expect_error([] { ops::moe_route(f32({4}), 1); }, {"moe_route: logits are [4]", "[tokens, num_experts]"});
  expect_error([] { ops::moe_route(transposed(2, 4), 1); }, {"moe_route: logits", "contiguous"});
  expect_error([] { ops::moe_route(of(Dtype::bf16, {2, 4}), 1); }, {"moe_route: logits", "bfloat16"});
  for (const int64_t top_k : {0, 5})
    expect_error([&] { ops::moe_route(f32({2, 4}), top_k); }, {"moe_route: top_k", "1 to 4"});
}

TEST(Arguments, OfMoeExperts) {
  const auto experts = [](int64_t e, int64_t inter, int64_t hidden) {
    return ops::Experts{.gate_up = Weight::dense(f32({e, 2 * inter, hidden}), "gate_up"),
                        .down = Weight::dense(f32({e, hidden, inter}), "down"),
                        .gate_up_bias = {},
                        .down_bias = {}};
  };
  const auto routing = [](const std::vector<int32_t>& chosen) {
    return ops::Routing{device_tensor<int32_t>({1, 2}, chosen), f32({1, 2})};
  };
  const Tensor x = f32({1, 6});
  expect_error(
      [&] {
        ops::moe_experts(f32({6}), routing({0, 1}), experts(3, 4, 6));
      },
      {"moe_experts: x is [6]"});
  expect_error(
      [&] {
        ops::moe_experts(x, routing({0, 1}), experts(3, 4, 7));
      },
      {"gate_up is [3, 8, 7]", "x [1, 6]"});
  ops::Experts odd = experts(3, 4, 6);
  odd.down = Weight::dense(f32({3, 6, 5}), "down");
  expect_error(
      [&] {
        ops::moe_experts(x, routing({0, 1}), odd);
      },
      {"down [3, 6, 5]", "[num_experts, hidden, inter]"});
  for (const int32_t bad : {-1, 3})
    expect_error(
        [&] {
          ops::moe_experts(x, routing({0, bad}), experts(3, 4, 6));
        },
        {concat("moe_experts: expert ", bad, " of 3")});
  ops::Routing wrong = routing({0, 1});
  wrong.weights = f32({1, 3});
  expect_error([&] { ops::moe_experts(x, wrong, experts(3, 4, 6)); },
               {"experts are [1, 2] and weights [1, 3]"});
  ops::Experts biased = experts(3, 4, 6);
  biased.gate_up_bias = f32({3, 7});
  expect_error(
      [&] {
        ops::moe_experts(x, routing({0, 1}), biased);
      },
      {"moe_experts: gate_up_bias", "[3, 7]", "24"});
  biased = experts(3, 4, 6);
  biased.down_bias = f32({3, 4});
  expect_error(
      [&] {
        ops::moe_experts(x, routing({0, 1}), biased);
      },
      {"moe_experts: down_bias", "[3, 4]", "18"});
}

// A routing with swapped strides must not be read as if it were row-major.
TEST(Arguments, OfMoeExpertsMustBeContiguous) {
  const Tensor flat = device_tensor<int32_t>({2, 3}, {0, 1, 2, 0, 1, 2});
  const int64_t strides[] = {1, 3};
  const Tensor chosen = Tensor::wrap(flat.data(), {3, 2}, Dtype::i32, flat.device(), flat.owner(), strides);
  const ops::Experts e{.gate_up = Weight::dense(f32({3, 4, 6}), "gate_up"),
                       .down = Weight::dense(f32({3, 6, 2}), "down"),
                       .gate_up_bias = {},
                       .down_bias = {}};
  expect_error(
      [&] {
        ops::moe_experts(f32({3, 6}), {chosen, f32({3, 2})}, e);
      },
      {"moe_experts: experts", "contiguous"});
}

TEST(Arguments, OfSample) {
  std::vector<int32_t> tokens(2);
  const auto call = [&](const Tensor& logits, const ops::SamplingParams& params, size_t rows = 2) {
    const std::vector<ops::SampleRow> list(rows, {params, 0});
    ops::sample(logits, list, tokens);
  };
  expect_error([&] { call(f32({3}), {}); }, {"sample: logits are [3]", "[rows, vocab]"});
  expect_error([&] { call(f32({2, 0}), {}); }, {"sample: logits are [2, 0]"});
  expect_error([&] { call(of(Dtype::bf16, {2, 3}), {}); }, {"sample: logits", "bfloat16"});
  expect_error([&] { call(f32({2, 3}), {}, 1); }, {"sample: 2 rows of logits", "1 of parameters"});
  expect_error([&] { call(f32({3, 3}), {}, 3); }, {"sample: 3 rows of logits", "2 tokens"});
  expect_error([&] { call(f32({2, 3}), {.temperature = -1}); }, {"sample: temperature is -1"});
  expect_error([&] { call(f32({2, 3}), {.temperature = NAN}); }, {"sample: temperature is nan"});
  expect_error(
      [&] {
        call(f32({2, 3}), {.temperature = 1, .min_p = 1.5f});
      },
      {"sample: min_p is 1.5", "0 to 1"});
}

}  // namespace
}  // namespace trivium::testing
