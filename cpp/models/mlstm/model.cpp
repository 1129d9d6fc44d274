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
  int64_t tokens, segments;  // padding included
  int64_t rows = 0;          // positions that need logits
  bool every_row = false;    // all of them, in order
  int64_t longest = 0, further = 0;

  Stream* stream() const { return states.stream.get(); }
  StreamHandle* handle() const { return stream() ? stream()->handle() : nullptr; }
  Tensor cut(const Tensor& t) const { return t.slice(0, tokens); }
  // `count` of the step's integers where kernels read them.
  Tensor input(int64_t from, int64_t count) const { return states.work.inputs.slice(from, from + count); }
  void check() const {
    if (cancel) cancel->check();
  }
};

namespace {

void check_segment(const Segment& s, XlstmStates& states) {
  TRIVIUM_CHECK(s.count >= 1 && s.start >= 0 && s.start + s.count <= states.reserved(s.slot),
                "forward: slot ", s.slot, " has room for ", states.reserved(s.slot), " positions, ",
                s.start + s.count, " are needed");
  TRIVIUM_CHECK(s.start == 0 || s.start == states.processed(s.slot), "forward: slot ", s.slot, " has seen ",
                states.processed(s.slot), " tokens, the segment starts at ", s.start);
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
  return XlstmStates::num_blocks(config_, options) * XlstmStates::block_floats(config_) * 4 +
         Workspace::bytes(config_, options, activation_, info_.device);
}

std::unique_ptr<SequenceStates> XlstmModel::make_states(const StateOptions& options) const {
  return std::make_unique<XlstmStates>(config_, options, activation_, info_.device);
}

// Writes the step's integers to host memory. Padding tokens belong to no segment.
void XlstmModel::pack(Step& step) const {
  Workspace& w = step.states.work;
  int32_t* ids = w.staging.data_as<int32_t>();
  int32_t *rows = ids + w.rows_at, *owners = ids + w.owners_at;
  auto* segments = reinterpret_cast<MlstmSegment*>(ids + w.segments_at);
  std::copy(step.batch.tokens.begin(), step.batch.tokens.end(), ids);
  std::fill(ids + step.batch.tokens.size(), ids + step.tokens, 0);
  std::fill_n(segments, step.segments, MlstmSegment{});
  int32_t row = 0, index = 0;
  for (const Segment& s : step.batch.segments) {
    segments[index] = {step.states.block(s.slot), static_cast<int32_t>(s.start), row,
                       static_cast<int32_t>(s.count), static_cast<int32_t>(step.further)};
    const int64_t further = step.stream() ? mlstm_further_chunks(s.start, s.count) : 0;
    std::fill_n(owners + step.further, further, index++);
    step.further += further;
    step.longest = std::max(step.longest, s.count);
    for (int64_t i = 0; i < s.count; ++i, ++row)
      if (s.wants(i)) rows[step.rows++] = row;
    step.states.processed(s.slot) = s.start + s.count;
  }
}

// x += Wout (sigmoid(o) * head_norm(mLSTM(rms_norm(x))))
void XlstmModel::mlstm_layer(Step& step, int64_t layer) const {
  const XlstmConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  XlstmStates& states = step.states;
  Workspace& w = states.work;
  Stream* stream = step.stream();
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), qkvo = step.cut(w.qkvo), gates = step.cut(w.gates);
  const int64_t k_at = c.qk_dim, v_at = 2 * c.qk_dim, o_at = v_at + c.v_dim;
  ops::rms_norm(stream, x, lw.norm_mlstm, static_cast<float>(c.norm_eps), normed);
  if (lw.qkvo.data.data()) {
    ops::linear(stream, normed, lw.qkvo, {}, qkvo);
    ops::linear(stream, normed, lw.gates, lw.gates_bias, gates);
  } else {
    ops::linear(stream, normed, lw.q, {}, qkvo, 0);
    ops::linear(stream, normed, lw.k, {}, qkvo, k_at);
    ops::linear(stream, normed, lw.v, {}, qkvo, v_at);
    ops::linear(stream, normed, lw.o, {}, qkvo, o_at);
    ops::linear(stream, normed, lw.i, lw.i_bias, gates, 0);
    ops::linear(stream, normed, lw.f, lw.f_bias, gates, c.num_heads);
  }
  const float *projected = qkvo.data_as<float>(), *gate = gates.data_as<float>();
  const int32_t* inputs = w.inputs.data_as<int32_t>();
  const MlstmSegmentsArgs cell{
      .q = projected,
      .k = projected + k_at,
      .v = projected + v_at,
      .i = gate,
      .f = gate + c.num_heads,
      .segments = reinterpret_cast<const MlstmSegment*>(inputs + w.segments_at),
      .slots = states.layer(layer),
      .h = w.h.data_as<float>(),
      .num_segments = step.segments,
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
                  .normalize = 1},
      .longest = step.longest,
      .num_further = step.further,
      .owners = inputs + w.owners_at,
      .chunk_states = w.chunk_states.data_as<float>()};
  call_kernel(info_.device, &Kernels::mlstm_segments, "mlstm_segments", step.handle(), cell);
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
  call_kernel(info_.device, &Kernels::head_norm, "head_norm", step.handle(), norm);
  ops::linear(stream, gated, lw.out, {}, x, 0, true);
}

// x += Wdown (silu(Wgate y) * (Wup y)), y = rms_norm(x)
void XlstmModel::ffn_layer(Step& step, int64_t layer) const {
  const XlstmConfig& c = config_;
  const LayerWeights& lw = weights_.layers[static_cast<size_t>(layer)];
  Workspace& w = step.states.work;
  Stream* stream = step.stream();
  Tensor x = step.cut(w.x), normed = step.cut(w.normed), up = step.cut(w.up), act = step.cut(w.act);
  ops::rms_norm(stream, x, lw.norm_ffn, static_cast<float>(c.norm_eps), normed);
  if (lw.ups.data.data()) {
    ops::linear(stream, normed, lw.ups, {}, up);
  } else {
    ops::linear(stream, normed, lw.up_gate, {}, up, 0);
    ops::linear(stream, normed, lw.up, {}, up, c.intermediate_size);
  }
  const SiluMulArgs silu{up.data_as<float>(), act.data(), step.tokens, c.intermediate_size, activation_};
  call_kernel(info_.device, &Kernels::silu_mul, "silu_mul", step.handle(), silu);
  ops::linear(stream, act, lw.down, {}, x, 0, true);
}

// Final norm and head of the rows that were asked for.
Tensor XlstmModel::logits(Step& step) const {
  Workspace& w = step.states.work;
  const int64_t count = step.every_row ? step.tokens : step.rows;
  if (count > w.logits.dim(0) && (!w.all_logits.data() || w.all_logits.dim(0) < count))
    w.all_logits = Tensor::empty({count, config_.vocab_size}, Dtype::f32, info_.device);
  Tensor out = (count > w.logits.dim(0) ? w.all_logits : w.logits).slice(0, count);
  if (count == 0) return out;
  Tensor rows = step.cut(w.x);
  if (!step.every_row) {
    Tensor chosen = w.chosen.slice(0, count);
    ops::embedding(step.stream(), step.input(w.rows_at, count), rows, chosen);
    rows = chosen;
  }
  Tensor normed = w.normed.slice(0, count);
  ops::rms_norm(step.stream(), rows, weights_.out_norm, static_cast<float>(config_.norm_eps), normed);
  ops::linear(step.stream(), normed, weights_.lm_head, {}, out);
  if (config_.logit_soft_cap > 0) {
    const SoftCapArgs cap{out.data_as<float>(), out.numel(), static_cast<float>(config_.logit_soft_cap)};
    call_kernel(info_.device, &Kernels::soft_cap, "soft_cap", step.handle(), cap);
  }
  return out;
}

// Puts the whole step on the stream; on the CPU runs it.
Tensor XlstmModel::enqueue(Step& step) const {
  Workspace& w = step.states.work;
  copy_inputs(step.stream(), w.staging, w.inputs);
  Tensor x = step.cut(w.x);
  ops::embedding(step.stream(), step.input(0, step.tokens), weights_.embedding, x);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    step.check();
    mlstm_layer(step, layer);
    step.check();
    ffn_layer(step, layer);
  }
  step.check();
  return logits(step);
}

Tensor XlstmModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* own = dynamic_cast<XlstmStates*>(&states);
  TRIVIUM_CHECK(own, "forward: the states belong to another kind of model");
  TRIVIUM_CHECK(!weights_.layers.empty(), "forward: the model was loaded without weights");
  check_batch(batch, own->options(), config_.vocab_size, [&](const Segment& s) { check_segment(s, *own); });
  const auto count = static_cast<int64_t>(batch.tokens.size());
  Step step{batch, *own, cancel, count, static_cast<int64_t>(batch.segments.size())};
  if (count == 0) return logits(step);
  step.every_row = is_decode_step(batch);
  if (step.stream() && step.every_row) step.tokens = step.segments = padded_batch(count);
  pack(step);
  const Tensor out = run_step(step.stream(), own->graphs, batch, {step.every_row, step.tokens, step.rows},
                              own->work.logits, [&] { return enqueue(step); });
  if (weights_.archive) weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void XlstmModel::warm_up(const CancelToken* cancel) {
  if (is_gpu(info_.device.kind)) return;
  touch_pages(weights_.embedding, cancel);
  touch_pages(weights_.lm_head.data, cancel);
  for (const LayerWeights& l : weights_.layers)
    for (const ops::Weight* w : {&l.q, &l.k, &l.v, &l.o, &l.i, &l.f, &l.out, &l.up_gate, &l.up, &l.down})
      touch_pages(w->data, cancel);
}

}  // namespace trivium::xlstm
