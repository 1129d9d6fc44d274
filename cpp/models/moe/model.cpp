#include "models/moe/model.h"

#include <algorithm>
#include <cmath>

#include "core/registry.h"
#include "models/scan.h"

namespace trivium::moe {

// One forward(): views of the workspace cut to the step's size.
struct MoeModel::Step {
  MoeStates& states;
  const CancelToken* cancel;
  int64_t tokens;          // padding included
  int64_t rows = 0;        // positions that need logits
  bool every_row = false;  // all of them, in order
  bool greedy = false;     // only the rows' maxima matter

  Stream* stream() const { return states.stream.get(); }
  StreamHandle* handle() const { return stream() ? stream()->handle() : nullptr; }
  Tensor cut(const Tensor& t, int64_t per_token = 1) const { return t.slice(0, tokens * per_token); }
  // Row `i` of the step's integers: 0 ids, 1 slots, 2 positions, 3 rows that need logits.
  Tensor input(int i, int64_t count) const {
    return states.work.inputs.slice(i, i + 1).reshape({states.work.inputs.dim(1)}).slice(0, count);
  }
  const int32_t* slots() const { return input(1, tokens).data_as<int32_t>(); }
  const int32_t* positions() const { return input(2, tokens).data_as<int32_t>(); }
  void check() const {
    if (cancel) cancel->check();
  }
};

namespace {

void check_segment(const Segment& s, const MoeStates& states, const MoeConfig& c) {
  TRIVIUM_CHECK(
      s.count >= 1 && 0 <= s.start && s.start <= c.max_positions && s.count <= c.max_positions - s.start,
      "forward: ", s.count, " positions from ", s.start, ", the model has ", c.max_positions);
  TRIVIUM_CHECK(s.start + s.count <= states.reserved(s.slot), "forward: slot ", s.slot, " has room for ",
                states.reserved(s.slot), " positions, ", s.start + s.count, " are needed");
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
  return MoeStates::plan(config_, options, info_.device).bytes +
         Workspace::bytes(config_, options, activation_, info_.device);
}

std::unique_ptr<SequenceStates> MoeModel::make_states(const StateOptions& options) const {
  auto states = std::make_unique<MoeStates>(config_, options, activation_, info_.device);
  Tensor inv_freq = Tensor::empty({config_.head_dim / 2}, Dtype::f64);
  std::copy(rope_.inv_freq.begin(), rope_.inv_freq.end(), inv_freq.data_as<double>());
  states->work.inv_freq = inv_freq.to(info_.device);
  return states;
}

void MoeModel::embed(Step& step) const {
  Workspace& w = step.states.work;
  copy_inputs(step.stream(), w.staging, w.inputs);
  Tensor x = step.cut(w.x);
  ops::embedding(step.stream(), step.input(0, step.tokens), weights_.embedding, x);
  const RopeTableArgs args{.positions = step.positions(),
                           .inv_freq = w.inv_freq.data_as<double>(),
                           .table = w.rope.data_as<float>(),
                           .tokens = step.tokens,
                           .pairs = config_.head_dim / 2,
                           .concentration = rope_.concentration};
  call_kernel(info_.device, &Kernels::rope_table, "rope_table", step.handle(), args);
}

// projected = O(attention(rope(QKV(rms_norm(x)))))
void MoeModel::attention_layer(Step& step, int64_t layer) const {
  const MoeConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  Workspace& w = step.states.work;
  Tensor normed = step.cut(w.normed), qkv = step.cut(w.qkv), attended = step.cut(w.attended),
         projected = step.cut(w.projected);
  Stream* stream = step.stream();
  ops::rms_norm(stream, step.cut(w.x), lw.input_norm, static_cast<float>(c.rms_norm_eps), normed);
  if (lw.qkv.data.data()) {
    ops::linear(stream, normed, lw.qkv, lw.qkv_bias, qkv);
  } else {
    ops::linear(stream, normed, lw.q, lw.q_bias, qkv, 0);
    ops::linear(stream, normed, lw.k, lw.k_bias, qkv, c.q_dim());
    ops::linear(stream, normed, lw.v, lw.v_bias, qkv, c.q_dim() + c.kv_dim());
  }
  const PagedKv kv = step.states.kv(layer);
  const RopeKvArgs rope{.qkv = qkv.data_as<float>(),
                        .table = w.rope.data_as<float>(),
                        .slots = step.slots(),
                        .positions = step.positions(),
                        .kv = kv,
                        .tokens = step.tokens,
                        .num_heads = c.num_heads,
                        .num_kv_heads = c.num_kv_heads,
                        .head_dim = c.head_dim};
  call_kernel(info_.device, &Kernels::rope_kv, "rope_kv", step.handle(), rope);
  const bool split = attention_workspace(step.tokens, c.num_heads, c.head_dim) <= w.attention.numel();
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
      .out_dtype = activation_,
      .workspace = split ? static_cast<float*>(w.attention.data()) : nullptr};
  call_kernel(info_.device, &Kernels::attention, "attention", step.handle(), attention);
  ops::linear(stream, attended, lw.o, lw.o_bias, projected);
}

// x += projected, then the chosen experts of rms_norm(x)
void MoeModel::moe_layer(Step& step, int64_t layer) const {
  const MoeConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  const Device device = info_.device;
  Workspace& w = step.states.work;
  const int64_t rows = step.tokens * c.top_k;
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), router_logits = step.cut(w.router_logits);
  ops::add_rms_norm(step.stream(), x, step.cut(w.projected), lw.post_norm, static_cast<float>(c.rms_norm_eps),
                    normed);
  ops::linear(step.stream(), normed, lw.router, lw.router_bias, router_logits);
  const MoeRouteArgs route{router_logits.data_as<float>(),
                           w.experts.data_as<int32_t>(),
                           w.expert_weights.data_as<float>(),
                           step.tokens,
                           c.num_experts,
                           c.top_k};
  call_kernel(device, &Kernels::moe_route, "moe_route", step.handle(), route);
  const MoePermuteArgs permute{route.experts,
                               w.offsets.data_as<int32_t>(),
                               w.tokens_of_row.data_as<int32_t>(),
                               w.row_of_choice.data_as<int32_t>(),
                               step.tokens,
                               c.num_experts,
                               c.top_k};
  call_kernel(device, &Kernels::moe_permute, "moe_permute", step.handle(), permute);
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
  call_kernel(device, &Kernels::moe_gate_up, "moe_gate_up", step.handle(), gate_up);
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
  call_kernel(device, &Kernels::moe_down, "moe_down", step.handle(), down);
  const MoeCombineArgs combine{
      down.y, route.weights, permute.row_of_choice, x.data_as<float>(), step.tokens, c.hidden_size, c.top_k};
  call_kernel(device, &Kernels::moe_combine, "moe_combine", step.handle(), combine);
}

// Final norm and unembedding of the rows that were asked for.
Tensor MoeModel::logits(Step& step) const {
  Workspace& w = step.states.work;
  const int64_t count = step.every_row ? step.tokens : step.rows;
  if (count > w.logits.dim(0) && (!w.all_logits.data() || w.all_logits.dim(0) < count))
    w.all_logits = Tensor::empty({count, config_.vocab_size}, Dtype::f32, info_.device);
  Tensor out = (count > w.logits.dim(0) ? w.all_logits : w.logits).slice(0, count);
  if (count == 0) return out;
  Tensor rows = step.cut(w.x);
  if (!step.every_row) {
    Tensor chosen = w.chosen.slice(0, count);
    ops::embedding(step.stream(), step.input(3, count), rows, chosen);
    rows = chosen;
  }
  Tensor normed = w.normed.slice(0, count);
  ops::rms_norm(step.stream(), rows, weights_.final_norm, static_cast<float>(config_.rms_norm_eps), normed);
  if (step.greedy && weights_.screen && count <= ops::kScreenedRows)
    ops::linear_maximum(normed, weights_.unembedding, *weights_.screen, out);
  else
    ops::linear(step.stream(), normed, weights_.unembedding, {}, out);
  return out;
}

// Puts the whole step on the stream; on the CPU runs it.
Tensor MoeModel::enqueue(Step& step) const {
  embed(step);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    step.check();
    attention_layer(step, layer);
    step.check();
    moe_layer(step, layer);
  }
  step.check();
  return logits(step);
}

Tensor MoeModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* own = dynamic_cast<MoeStates*>(&states);
  TRIVIUM_CHECK(own, "forward: the states belong to another kind of model");
  TRIVIUM_CHECK(!weights_.layers.empty(), "forward: the model was loaded without weights");
  check_batch(batch, own->options(), config_.vocab_size,
              [&](const Segment& s) { check_segment(s, *own, config_); });
  const auto count = static_cast<int64_t>(batch.tokens.size());
  Step step{*own, cancel, count};
  if (count == 0) return logits(step);
  step.every_row = is_decode_step(batch);
  step.greedy = std::all_of(batch.segments.begin(), batch.segments.end(), [](const Segment& s) {
    return s.logits == Segment::Logits::maximum || s.logits == Segment::Logits::none;
  });
  const bool gpu = step.stream() != nullptr;
  if (gpu && step.every_row) step.tokens = padded_batch(count);
  step.rows = pack_tokens(batch, step.tokens, own->num_slots(), own->work.staging);
  if (gpu) own->upload_tables();
  const Tensor out = run_step(step.stream(), own->graphs, batch, {step.every_row, step.tokens, step.rows},
                              own->work.logits, [&] { return enqueue(step); });
  if (weights_.archive) weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void MoeModel::warm_up(const CancelToken* cancel) {
  if (is_gpu(info_.device.kind)) return;
  touch_pages(weights_.embedding, cancel);
  touch_pages(weights_.unembedding.data, cancel);
  for (const LayerWeights& l : weights_.layers)
    for (const ops::Weight* w : {&l.q, &l.k, &l.v, &l.o, &l.router, &l.gate_up, &l.down}) {
      touch_pages(w->data, cancel);
      if (w->scales.data()) touch_pages(w->scales, cancel);
    }
}

}  // namespace trivium::moe
