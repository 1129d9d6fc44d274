#include "models/mlstm/model.h"

#include <algorithm>
#include <cmath>

#include "core/registry.h"
#include "models/scan.h"

namespace trivium::xlstm {

// One forward(): views of the workspace cut to the step's size.
struct XlstmModel::Step {
  const Batch& batch;
  XlstmStates& states;
  const CancelToken* cancel;
  int64_t tokens;
  std::vector<int32_t> rows;  // of x that need logits

  Tensor cut(const Tensor& t) const { return t.slice(0, tokens); }
  void check() const {
    if (cancel) cancel->check();
  }
};

namespace {

// Everything about a batch a kernel would trust.
void check_batch(const Batch& batch, XlstmStates& states, const XlstmConfig& c) {
  int64_t total = 0;
  std::vector<bool> seen(static_cast<size_t>(states.num_slots()));
  for (const Segment& s : batch.segments) {
    TRIVIUM_CHECK(s.slot >= 0 && s.slot < states.num_slots(), "forward: slot ", s.slot, " of ",
                  states.num_slots());
    TRIVIUM_CHECK(!seen[static_cast<size_t>(s.slot)], "forward: slot ", s.slot, " appears twice");
    seen[static_cast<size_t>(s.slot)] = true;
    TRIVIUM_CHECK(s.count >= 1 && s.start >= 0 && s.start + s.count <= states.reserved(s.slot),
                  "forward: slot ", s.slot, " has room for ", states.reserved(s.slot), " positions, ",
                  s.start + s.count, " are needed");
    TRIVIUM_CHECK(s.start == 0 || s.start == states.processed(s.slot), "forward: slot ", s.slot, " has seen ",
                  states.processed(s.slot), " tokens, the segment starts at ", s.start);
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

XlstmModel::XlstmModel(XlstmConfig config, XlstmWeights weights, ModelInfo info,
                       std::shared_ptr<const io::Tokenizer> tokenizer)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      info_(std::move(info)),
      activation_(info_.precision == Precision::bfloat16 ? Dtype::bf16 : Dtype::f32) {
  tokenizer_ = std::move(tokenizer);
}

int64_t XlstmModel::state_bytes(const StateOptions& options) const {
  const XlstmConfig& c = config_;
  const int64_t wide =
      4 * (1 + c.hidden_size + 2 * c.qk_dim + 3 * c.v_dim + 2 * c.num_heads + 2 * c.intermediate_size);
  const int64_t narrow = size_of(activation_) * (c.hidden_size + c.v_dim + c.intermediate_size);
  return XlstmStates::num_blocks(c, options) * XlstmStates::block_floats(c) * 4 +
         options.max_step_tokens * (wide + narrow) + 4 * options.num_slots * c.vocab_size;
}

std::unique_ptr<SequenceStates> XlstmModel::make_states(const StateOptions& options) const {
  return std::make_unique<XlstmStates>(config_, options, activation_);
}

// x += Wout (sigmoid(o) * head_norm(mLSTM(rms_norm(x))))
void XlstmModel::mlstm_layer(Step& step, int64_t layer) const {
  const XlstmConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  XlstmStates& states = step.states;
  Workspace& w = states.work;
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), qkvo = step.cut(w.qkvo), gates = step.cut(w.gates);
  const int64_t k_at = c.qk_dim, v_at = 2 * c.qk_dim, o_at = v_at + c.v_dim;
  ops::rms_norm(nullptr, x, lw.norm_mlstm, static_cast<float>(c.norm_eps), normed);
  ops::linear(nullptr, normed, lw.q, {}, qkvo, 0);
  ops::linear(nullptr, normed, lw.k, {}, qkvo, k_at);
  ops::linear(nullptr, normed, lw.v, {}, qkvo, v_at);
  ops::linear(nullptr, normed, lw.o, {}, qkvo, o_at);
  ops::linear(nullptr, normed, lw.i, lw.i_bias, gates, 0);
  ops::linear(nullptr, normed, lw.f, lw.f_bias, gates, c.num_heads);
  const float *projected = qkvo.data_as<float>(), *gate = gates.data_as<float>();
  const MlstmSegmentsArgs cell{
      .q = projected,
      .k = projected + k_at,
      .v = projected + v_at,
      .i = gate,
      .f = gate + c.num_heads,
      .segments = w.segments.data(),
      .slots = states.layer(layer),
      .h = w.h.data_as<float>(),
      .num_segments = static_cast<int64_t>(w.segments.size()),
      .heads = c.num_heads,
      .dqk = c.head_qk(),
      .dv = c.head_v(),
      .stride = qkvo.dim(1),
      .gate_stride = gates.dim(1),
      .slot_stride = states.block_stride(),
      .gate_cap = static_cast<float>(c.gate_soft_cap),
      .options = {.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_qk()))),
                  .eps = static_cast<float>(c.eps),
                  .m_floor = -10,
                  .sigmoid_input = 0,
                  .normalize = 1}};
  call_kernel(info_.device, &Kernels::mlstm_segments, "mlstm_segments", nullptr, cell);
  Tensor gated = step.cut(w.gated);
  const HeadNormArgs norm{.x = cell.h,
                          .gate = projected + o_at,
                          .w = ops::vector_view(lw.head_norm, c.v_dim, info_.device, "multihead_norm"),
                          .bias = {},
                          .y = gated.data(),
                          .rows = step.tokens,
                          .heads = c.num_heads,
                          .dim = c.head_v(),
                          .gate_stride = qkvo.dim(1),
                          .eps = static_cast<float>(c.norm_eps),
                          .y_dtype = activation_};
  call_kernel(info_.device, &Kernels::head_norm, "head_norm", nullptr, norm);
  ops::linear(nullptr, gated, lw.out, {}, x, 0, true);
}

// x += Wdown (silu(Wgate y) * (Wup y)), y = rms_norm(x)
void XlstmModel::ffn_layer(Step& step, int64_t layer) const {
  const XlstmConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  Workspace& w = step.states.work;
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), up = step.cut(w.up), act = step.cut(w.act);
  ops::rms_norm(nullptr, x, lw.norm_ffn, static_cast<float>(c.norm_eps), normed);
  ops::linear(nullptr, normed, lw.up_gate, {}, up, 0);
  ops::linear(nullptr, normed, lw.up, {}, up, c.intermediate_size);
  const SiluMulArgs silu{up.data_as<float>(), act.data(), step.tokens, c.intermediate_size, activation_};
  call_kernel(info_.device, &Kernels::silu_mul, "silu_mul", nullptr, silu);
  ops::linear(nullptr, act, lw.down, {}, x, 0, true);
}

// Final norm and head of the rows that were asked for.
Tensor XlstmModel::logits(Step& step) const {
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
  ops::rms_norm(nullptr, w.x.slice(0, count), weights_.out_norm, static_cast<float>(config_.norm_eps),
                normed);
  ops::linear(nullptr, normed, weights_.lm_head, {}, out);
  if (config_.logit_soft_cap > 0) {
    const SoftCapArgs cap{out.data_as<float>(), out.numel(), static_cast<float>(config_.logit_soft_cap)};
    call_kernel(info_.device, &Kernels::soft_cap, "soft_cap", nullptr, cap);
  }
  return out;
}

Tensor XlstmModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* mine = dynamic_cast<XlstmStates*>(&states);
  TRIVIUM_CHECK(mine, "forward: the states belong to another kind of model");
  check_batch(batch, *mine, config_);
  Step step{batch, *mine, cancel, static_cast<int64_t>(batch.tokens.size()), {}};
  if (step.tokens == 0) return logits(step);
  Workspace& w = mine->work;
  w.segments.clear();
  std::copy(batch.tokens.begin(), batch.tokens.end(), w.ids.data_as<int32_t>());
  int64_t row = 0;
  for (const Segment& s : batch.segments) {
    w.segments.push_back({mine->block(s.slot), static_cast<int32_t>(s.start), static_cast<int32_t>(row),
                          static_cast<int32_t>(s.count)});
    for (int64_t i = 0; i < s.count; ++i, ++row)
      if (s.wants(i))
        step.rows.push_back(static_cast<int32_t>(row));
    mine->processed(s.slot) = s.start + s.count;
  }
  Tensor x = step.cut(w.x);
  ops::embedding(nullptr, step.cut(w.ids), weights_.embedding, x);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    step.check();
    mlstm_layer(step, layer);
    step.check();
    ffn_layer(step, layer);
  }
  step.check();
  Tensor out = logits(step);
  weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void XlstmModel::warm_up() {
  touch_pages(weights_.embedding);
  touch_pages(weights_.lm_head.data);
  for (const LayerWeights& l : weights_.layers)
    for (const ops::Weight* w : {&l.q, &l.k, &l.v, &l.o, &l.i, &l.f, &l.out, &l.up_gate, &l.up, &l.down})
      touch_pages(w->data);
}

}  // namespace trivium::xlstm
