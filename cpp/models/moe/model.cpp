#include "models/moe/model.h"

#include <algorithm>
#include <cmath>

#include "core/registry.h"
#include "models/scan.h"

namespace trivium::moe {

// One forward(): views of the workspace cut to the step's size.
struct MoeModel::Step {
  const Batch& batch;
  MoeStates& states;
  const CancelToken* cancel;
  int64_t tokens;
  std::vector<int32_t> rows;  // of x that need logits

  Tensor cut(const Tensor& t, int64_t per_token = 1) const { return t.slice(0, tokens * per_token); }
  void check() const {
    if (cancel) cancel->check();
  }
};

namespace {

// Everything about a batch a kernel would trust.
void check_batch(const Batch& batch, const MoeStates& states, const MoeConfig& c) {
  int64_t total = 0;
  std::vector<bool> seen(static_cast<size_t>(states.num_slots()));
  for (const Segment& s : batch.segments) {
    TRIVIUM_CHECK(s.slot >= 0 && s.slot < states.num_slots(), "forward: slot ", s.slot, " of ",
                  states.num_slots());
    TRIVIUM_CHECK(!seen[static_cast<size_t>(s.slot)], "forward: slot ", s.slot, " appears twice");
    seen[static_cast<size_t>(s.slot)] = true;
    TRIVIUM_CHECK(
        s.count >= 1 && 0 <= s.start && s.start <= c.max_positions && s.count <= c.max_positions - s.start,
        "forward: ", s.count, " positions from ", s.start, ", the model has ", c.max_positions);
    TRIVIUM_CHECK(s.start + s.count <= states.reserved(s.slot), "forward: slot ", s.slot, " has room for ",
                  states.reserved(s.slot), " positions, ", s.start + s.count, " are needed");
    total += s.count;
  }
  TRIVIUM_CHECK(total == static_cast<int64_t>(batch.tokens.size()), "forward: ", batch.tokens.size(),
                " tokens, but segments of ", total);
  TRIVIUM_CHECK(total <= states.options().max_step_tokens, "forward: ", total, " tokens, at most ",
                states.options().max_step_tokens, " fit in a step");
  for (size_t i = 0; i < batch.tokens.size(); ++i)
    TRIVIUM_CHECK(batch.tokens[i] >= 0 && batch.tokens[i] < c.vocab_size, "forward: token ", i, " is ",
                  batch.tokens[i], ", the vocabulary has ", c.vocab_size);
}

}  // namespace

MoeModel::MoeModel(MoeConfig config, MoeWeights weights, ModelInfo info,
                   std::shared_ptr<const io::Tokenizer> tokenizer)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      info_(std::move(info)),
      rope_(ops::rope_frequencies(config_.head_dim, config_.rope)),
      activation_(info_.precision == Precision::bfloat16 ? Dtype::bf16 : Dtype::f32) {
  tokenizer_ = std::move(tokenizer);
}

int64_t MoeModel::state_bytes(const StateOptions& options) const {
  const MoeConfig& c = config_;
  const int64_t wide =
      4 * (c.hidden_size + c.q_dim() + 2 * c.kv_dim() + c.num_experts + c.top_k * c.hidden_size + c.head_dim);
  const int64_t narrow = size_of(activation_) * (c.hidden_size + c.q_dim() + c.top_k * c.intermediate_size);
  return MoeStates::plan(c, options).bytes + options.max_step_tokens * (wide + narrow) +
         4 * options.num_slots * c.vocab_size;
}

std::unique_ptr<SequenceStates> MoeModel::make_states(const StateOptions& options) const {
  auto states = std::make_unique<MoeStates>(config_, options, activation_);
  std::copy(rope_.inv_freq.begin(), rope_.inv_freq.end(), states->work.inv_freq.data_as<double>());
  return states;
}

void MoeModel::embed(Step& step) const {
  Workspace& w = step.states.work;
  auto* ids = w.ids.data_as<int32_t>();
  auto *slots = w.slots.data_as<int32_t>(), *positions = w.positions.data_as<int32_t>();
  int64_t t = 0;
  for (const Segment& s : step.batch.segments) {
    for (int64_t i = 0; i < s.count; ++i, ++t) {
      ids[t] = step.batch.tokens[static_cast<size_t>(t)];
      slots[t] = s.slot;
      positions[t] = static_cast<int32_t>(s.start + i);
      if (s.logits == Segment::Logits::all || (s.logits == Segment::Logits::last && i + 1 == s.count))
        step.rows.push_back(static_cast<int32_t>(t));
    }
  }
  Tensor x = step.cut(w.x);
  ops::embedding(nullptr, step.cut(w.ids), weights_.embedding, x);
  const RopeTableArgs args{.positions = positions,
                           .inv_freq = w.inv_freq.data_as<double>(),
                           .table = w.rope.data_as<float>(),
                           .tokens = step.tokens,
                           .pairs = config_.head_dim / 2,
                           .concentration = rope_.concentration};
  call_kernel(info_.device, &Kernels::rope_table, "rope_table", nullptr, args);
}

// x += O(attention(rope(QKV(rms_norm(x)))))
void MoeModel::attention_layer(Step& step, int64_t layer) const {
  const MoeConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  Workspace& w = step.states.work;
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), qkv = step.cut(w.qkv),
         attended = step.cut(w.attended);
  ops::rms_norm(nullptr, x, lw.input_norm, static_cast<float>(c.rms_norm_eps), normed);
  ops::linear(nullptr, normed, lw.q, lw.q_bias, qkv, 0);
  ops::linear(nullptr, normed, lw.k, lw.k_bias, qkv, c.q_dim());
  ops::linear(nullptr, normed, lw.v, lw.v_bias, qkv, c.q_dim() + c.kv_dim());
  const PagedKv kv = step.states.kv(layer);
  const RopeKvArgs rope{.qkv = qkv.data_as<float>(),
                        .table = w.rope.data_as<float>(),
                        .slots = w.slots.data_as<int32_t>(),
                        .positions = w.positions.data_as<int32_t>(),
                        .kv = kv,
                        .tokens = step.tokens,
                        .num_heads = c.num_heads,
                        .num_kv_heads = c.num_kv_heads,
                        .head_dim = c.head_dim};
  call_kernel(info_.device, &Kernels::rope_kv, "rope_kv", nullptr, rope);
  const AttentionArgs attention{
      .q = rope.qkv,
      .kv = kv,
      .slots = rope.slots,
      .positions = rope.positions,
      .sinks = ops::vector_view(lw.sinks, c.num_heads, info_.device, "attention: sinks"),
      .out = attended.data(),
      .tokens = step.tokens,
      .num_heads = c.num_heads,
      .num_kv_heads = c.num_kv_heads,
      .head_dim = c.head_dim,
      .q_stride = qkv.dim(1),
      .window = c.window(layer),
      .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))),
      .out_dtype = activation_};
  call_kernel(info_.device, &Kernels::attention, "attention", nullptr, attention);
  ops::linear(nullptr, attended, lw.o, lw.o_bias, x, 0, true);
}

// x += sum over the chosen experts of rms_norm(x)
void MoeModel::moe_layer(Step& step, int64_t layer) const {
  const MoeConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  const Device device = info_.device;
  Workspace& w = step.states.work;
  const int64_t rows = step.tokens * c.top_k;
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), router_logits = step.cut(w.router_logits);
  ops::rms_norm(nullptr, x, lw.post_norm, static_cast<float>(c.rms_norm_eps), normed);
  ops::linear(nullptr, normed, lw.router, lw.router_bias, router_logits);
  const MoeRouteArgs route{router_logits.data_as<float>(),
                           w.experts.data_as<int32_t>(),
                           w.expert_weights.data_as<float>(),
                           step.tokens,
                           c.num_experts,
                           c.top_k};
  call_kernel(device, &Kernels::moe_route, "moe_route", nullptr, route);
  const MoePermuteArgs permute{route.experts,
                               w.offsets.data_as<int32_t>(),
                               w.tokens_of_row.data_as<int32_t>(),
                               w.row_of_choice.data_as<int32_t>(),
                               step.tokens,
                               c.num_experts,
                               c.top_k};
  call_kernel(device, &Kernels::moe_permute, "moe_permute", nullptr, permute);
  const MoeGateUpArgs gate_up{
      .x = normed.data(),
      .w = lw.gate_up.view(),
      .bias =
          ops::vector_view(lw.gate_up_bias, c.num_experts * 2 * c.intermediate_size, device, "gate_up bias"),
      .offsets = permute.offsets,
      .tokens_of_row = permute.tokens_of_row,
      .act = w.act.data(),
      .rows = rows,
      .num_experts = c.num_experts,
      .hidden = c.hidden_size,
      .inter = c.intermediate_size,
      .alpha = static_cast<float>(c.swiglu_alpha),
      .limit = static_cast<float>(c.swiglu_limit),
      .dtype = activation_};
  call_kernel(device, &Kernels::moe_gate_up, "moe_gate_up", nullptr, gate_up);
  step.check();
  const MoeDownArgs down{
      .act = w.act.data(),
      .w = lw.down.view(),
      .bias = ops::vector_view(lw.down_bias, c.num_experts * c.hidden_size, device, "down bias"),
      .offsets = permute.offsets,
      .y = w.expert_out.data_as<float>(),
      .rows = rows,
      .num_experts = c.num_experts,
      .hidden = c.hidden_size,
      .inter = c.intermediate_size,
      .dtype = activation_};
  call_kernel(device, &Kernels::moe_down, "moe_down", nullptr, down);
  const MoeCombineArgs combine{
      down.y, route.weights, permute.row_of_choice, x.data_as<float>(), step.tokens, c.hidden_size, c.top_k};
  call_kernel(device, &Kernels::moe_combine, "moe_combine", nullptr, combine);
}

// Final norm and unembedding of the rows that were asked for.
Tensor MoeModel::logits(Step& step) const {
  Workspace& w = step.states.work;
  const auto count = static_cast<int64_t>(step.rows.size());
  if (!w.logits.data() || w.logits.dim(0) < count)
    w.logits = Tensor::empty({std::max<int64_t>(count, step.states.num_slots()), config_.vocab_size},
                             Dtype::f32, info_.device);
  Tensor out = w.logits.slice(0, count);
  if (count == 0) return out;
  // Ascending rows move towards the front: no row is overwritten before it was read.
  auto* x = w.x.data_as<float>();
  for (int64_t r = 0; r < count; ++r) {
    const float* from = x + step.rows[static_cast<size_t>(r)] * config_.hidden_size;
    std::copy(from, from + config_.hidden_size, x + r * config_.hidden_size);
  }
  Tensor normed = w.normed.slice(0, count);
  ops::rms_norm(nullptr, w.x.slice(0, count), weights_.final_norm, static_cast<float>(config_.rms_norm_eps),
                normed);
  ops::linear(nullptr, normed, weights_.unembedding, {}, out);
  return out;
}

Tensor MoeModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* mine = dynamic_cast<MoeStates*>(&states);
  TRIVIUM_CHECK(mine, "forward: the states belong to another kind of model");
  MoeStates& own = *mine;
  check_batch(batch, own, config_);
  Step step{batch, own, cancel, static_cast<int64_t>(batch.tokens.size()), {}};
  if (step.tokens == 0) return logits(step);
  embed(step);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    step.check();
    attention_layer(step, layer);
    step.check();
    moe_layer(step, layer);
  }
  step.check();
  Tensor out = logits(step);
  weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void MoeModel::warm_up() {
  touch_pages(weights_.embedding);
  touch_pages(weights_.unembedding.data);
  for (const LayerWeights& l : weights_.layers)
    for (const ops::Weight* w : {&l.q, &l.k, &l.v, &l.o, &l.router, &l.gate_up, &l.down}) {
      touch_pages(w->data);
      if (w->scales.data()) touch_pages(w->scales);
    }
}

}  // namespace trivium::moe
