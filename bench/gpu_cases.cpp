// The kernels of a gpt-oss-20b step with its shapes. Bytes count every operand once.
#include <algorithm>

#include "gpu_bench.h"

namespace trivium::bench {
namespace {

constexpr int64_t kHidden = 2880, kInter = 2880, kExperts = 32, kTopK = 4, kVocab = 201088;
constexpr int64_t kHeads = 64, kKvHeads = 8, kHeadDim = 64, kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int64_t kPage = 16, kWindow = 128;
constexpr double kMxBytes = 17.0 / 32.0;  // a weight with its share of the scale

template <class Args>
std::function<void(StreamHandle*)> call(Device device, Status (*Kernels::*entry)(StreamHandle*, const Args*),
                                        const char* name, const Args& args, std::vector<Tensor> keep) {
  return
      [=, held = std::move(keep)](StreamHandle* stream) { call_kernel(device, entry, name, stream, args); };
}

Case linear(Device device, const char* what, int64_t m, int64_t n, int64_t k) {
  const Tensor x = random_tensor({m, k}, Dtype::bf16, device), w = random_tensor({n, k}, Dtype::bf16, device),
               bias = random_tensor({n}, Dtype::bf16, device), y = Tensor::zeros({m, n}, Dtype::f32, device);
  LinearArgs a{};
  a.x = x.data();
  a.w = {w.data(), nullptr, WeightFormat::bf16};
  a.bias = {bias.data(), Dtype::bf16};
  a.y = y.data_as<float>();
  a.m = m, a.n = n, a.k = k, a.x_stride = k, a.y_stride = n;
  a.x_dtype = Dtype::bf16;
  return {concat("linear ", what), 2.0 * (n * k + m * k) + 4.0 * m * n, 2.0 * m * n * k,
          call(device, &Kernels::linear, "linear", a, {x, w, bias, y})};
}

Case rms_norm(Device device, int64_t tokens) {
  const Tensor x = random_tensor({tokens, kHidden}, Dtype::f32, device),
               add = random_tensor({tokens, kHidden}, Dtype::f32, device),
               w = random_tensor({kHidden}, Dtype::bf16, device),
               y = Tensor::zeros({tokens, kHidden}, Dtype::bf16, device);
  RmsNormArgs a{};
  a.x = x.data();
  a.add = add.data_as<float>();
  a.w = {w.data(), Dtype::bf16};
  a.y = y.data();
  a.rows = tokens, a.dim = kHidden, a.eps = 1e-5f;
  a.x_dtype = Dtype::f32, a.y_dtype = Dtype::bf16;
  return {"add_rms_norm", 14.0 * tokens * kHidden, 0,
          call(device, &Kernels::rms_norm, "rms_norm", a, {x, add, w, y})};
}

// `tokens` sequences of `context` keys each, at their last position.
Case attention(Device device, int64_t tokens, int64_t context, int64_t window) {
  const int64_t blocks = (context + kPage - 1) / kPage;
  std::vector<int32_t> table, slots, positions;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(t * blocks + b));
    slots.push_back(static_cast<int32_t>(t));
    positions.push_back(static_cast<int32_t>(context - 1));
  }
  const Shape cache{tokens * blocks, kKvHeads, kPage, kHeadDim};
  const Tensor q = random_tensor({tokens, kQkv}, Dtype::f32, device),
               k = random_tensor(cache, Dtype::bf16, device), v = random_tensor(cache, Dtype::bf16, device),
               out = Tensor::zeros({tokens, kHeads * kHeadDim}, Dtype::bf16, device),
               work = Tensor::zeros({attention_workspace(tokens, kHeads, kHeadDim)}, Dtype::f32, device),
               sinks = random_tensor({kHeads}, Dtype::bf16, device), d_table = integers(table, device),
               d_slots = integers(slots, device), d_positions = integers(positions, device);
  AttentionArgs a{};
  a.q = q.data_as<float>();
  a.kv = {k.data(), v.data(), d_table.data_as<int32_t>(), static_cast<int32_t>(blocks), kPage, Dtype::bf16};
  a.slots = d_slots.data_as<int32_t>();
  a.positions = d_positions.data_as<int32_t>();
  a.sinks = {sinks.data(), Dtype::bf16};
  a.out = out.data();
  a.tokens = tokens, a.num_heads = kHeads, a.num_kv_heads = kKvHeads, a.head_dim = kHeadDim,
  a.q_stride = kQkv;
  a.window = window, a.scale = 0.125f, a.out_dtype = Dtype::bf16;
  a.workspace = work.data_as<float>();
  const double keys = static_cast<double>(window ? std::min(window, context) : context);
  return {concat("attention decode, ", context, " keys", window ? ", window" : ""),
          tokens * (keys * kKvHeads * kHeadDim * 4.0 + kHeads * kHeadDim * 6.0),
          4.0 * tokens * keys * kHeads * kHeadDim,
          call(device, &Kernels::attention, "attention", a,
               {q, k, v, out, work, sinks, d_table, d_slots, d_positions})};
}

struct Routing {
  Tensor offsets, tokens_of_row;
  int64_t rows = 0, experts_hit = 0;
};

// Each token goes to kTopK experts; nearly uniform, as with random weights.
Routing route(Device device, int64_t tokens) {
  std::vector<std::vector<int32_t>> of_expert(kExperts);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t k = 0; k < kTopK; ++k)
      of_expert[static_cast<size_t>((t * 13 + k * 7 + t / 5) % kExperts)].push_back(static_cast<int32_t>(t));
  std::vector<int32_t> offsets{0}, rows;
  Routing r;
  for (const auto& list : of_expert) {
    rows.insert(rows.end(), list.begin(), list.end());
    offsets.push_back(static_cast<int32_t>(rows.size()));
    r.experts_hit += !list.empty();
  }
  r.rows = static_cast<int64_t>(rows.size());
  r.offsets = integers(offsets, device);
  r.tokens_of_row = integers(rows, device);
  return r;
}

// MXFP4 weights [experts, n, k]; scales of 2^-7 or so.
WeightView mxfp4(Device device, int64_t n, int64_t k, std::vector<Tensor>& keep) {
  keep.push_back(random_tensor({kExperts, n, k / 2}, Dtype::u8, device));
  Tensor scales = Tensor::empty({kExperts, n, k / 32}, Dtype::u8, device);
  runtime(device).fill(device.index, nullptr, scales.data(), 120, scales.nbytes());
  keep.push_back(scales);
  return {keep[keep.size() - 2].data(), scales.data_as<uint8_t>(), WeightFormat::mxfp4};
}

Case gate_up(Device device, int64_t tokens) {
  const Routing r = route(device, tokens);
  std::vector<Tensor> keep{r.offsets, r.tokens_of_row, random_tensor({tokens, kHidden}, Dtype::bf16, device),
                           random_tensor({kExperts, 2 * kInter}, Dtype::bf16, device),
                           Tensor::zeros({r.rows, kInter}, Dtype::bf16, device)};
  MoeGateUpArgs a{};
  a.w = mxfp4(device, 2 * kInter, kHidden, keep);
  a.x = keep[2].data();
  a.bias = {keep[3].data(), Dtype::bf16};
  a.offsets = r.offsets.data_as<int32_t>();
  a.tokens_of_row = r.tokens_of_row.data_as<int32_t>();
  a.act = keep[4].data();
  a.rows = r.rows, a.num_experts = kExperts, a.hidden = kHidden, a.inter = kInter;
  a.alpha = 1.702f, a.limit = 7.0f, a.dtype = Dtype::bf16;
  return {"moe_gate_up",
          r.experts_hit * 2.0 * kInter * kHidden * kMxBytes + 2.0 * (tokens * kHidden + r.rows * kInter),
          4.0 * r.rows * kInter * kHidden, call(device, &Kernels::moe_gate_up, "moe_gate_up", a, keep)};
}

Case down(Device device, int64_t tokens) {
  const Routing r = route(device, tokens);
  std::vector<Tensor> keep{r.offsets, random_tensor({r.rows, kInter}, Dtype::bf16, device),
                           random_tensor({kExperts, kHidden}, Dtype::bf16, device),
                           Tensor::zeros({r.rows, kHidden}, Dtype::f32, device)};
  MoeDownArgs a{};
  a.w = mxfp4(device, kHidden, kInter, keep);
  a.act = keep[1].data();
  a.bias = {keep[2].data(), Dtype::bf16};
  a.offsets = r.offsets.data_as<int32_t>();
  a.y = keep[3].data_as<float>();
  a.rows = r.rows, a.num_experts = kExperts, a.hidden = kHidden, a.inter = kInter, a.dtype = Dtype::bf16;
  return {"moe_down",
          r.experts_hit * 1.0 * kInter * kHidden * kMxBytes + r.rows * (2.0 * kInter + 4.0 * kHidden),
          2.0 * r.rows * kInter * kHidden, call(device, &Kernels::moe_down, "moe_down", a, keep)};
}

Case sample(Device device, int64_t rows) {
  const Tensor logits = random_tensor({rows, kVocab}, Dtype::f32, device),
               tokens = Tensor::zeros({rows}, Dtype::i32, device);
  Tensor params = Tensor::zeros({rows * static_cast<int64_t>(sizeof(SampleParams))}, Dtype::u8);
  for (int64_t i = 0; i < rows; ++i) {
    SampleParams p{};
    p.top_p = 1.0f;
    reinterpret_cast<SampleParams*>(params.data())[i] = p;
  }
  const Tensor there = params.to(device);
  SampleArgs a{};
  a.logits = logits.data_as<float>();
  a.params = static_cast<const SampleParams*>(there.data());
  a.tokens = tokens.data_as<int32_t>();
  a.rows = rows, a.vocab = kVocab;
  return {"sample, greedy", 4.0 * rows * kVocab, 0,
          call(device, &Kernels::sample, "sample", a, {logits, tokens, there})};
}

}  // namespace

std::vector<Case> moe_cases(Device device, int64_t tokens, int64_t context) {
  return {rms_norm(device, tokens),
          linear(device, "qkv", tokens, kQkv, kHidden),
          attention(device, tokens, context, 0),
          attention(device, tokens, context, kWindow),
          linear(device, "attention output", tokens, kHidden, kHeads * kHeadDim),
          linear(device, "router", tokens, kExperts, kHidden),
          gate_up(device, tokens),
          down(device, tokens),
          linear(device, "unembedding", tokens, kVocab, kHidden),
          sample(device, tokens)};
}

}  // namespace trivium::bench
