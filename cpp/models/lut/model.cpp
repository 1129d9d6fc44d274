#include "models/lut/model.h"

#include "core/registry.h"
#include "models/scan.h"
#include "models/step.h"
#include "ops/ops.h"

namespace trivium::lut {

// One forward(): views of the step's memory cut to its size.
struct LutModel::Step {
  LutStates& states;
  const CancelToken* cancel;
  int64_t tokens;          // padding included
  int64_t rows = 0;        // positions that need logits
  bool every_row = false;  // all of them, in order

  // Row `i` of the step's integers: 0 ids, 1 slots, 2 positions, 3 rows that need logits.
  Tensor input(int i, int64_t count) const {
    const Tensor& inputs = states.work.inputs;
    return inputs.slice(i, i + 1).reshape({inputs.dim(1)}).slice(0, count);
  }
  void check() const {
    if (cancel) cancel->check();
  }
};

namespace {

void check_segment(const Segment& s, const LutStates& states) {
  TRIVIUM_CHECK(s.count >= 1 && s.start >= 0 && s.count <= states.reserved(s.slot) - s.start,
                "forward: slot ", s.slot, " has room for ", states.reserved(s.slot), " positions, ", s.count,
                " from ", s.start, " are needed");
}

}  // namespace

LutModel::LutModel(LutConfig config, LutWeights weights, ModelInfo info,
                   std::shared_ptr<const io::Tokenizer> tokenizer)
    : config_(std::move(config)), weights_(std::move(weights)), info_(std::move(info)) {
  tokenizer_ = std::move(tokenizer);
}

int64_t LutModel::state_bytes(const StateOptions& options) const {
  return LutStates::bytes_for(config_, options, info_.device);
}

std::unique_ptr<SequenceStates> LutModel::make_states(const StateOptions& options) const {
  return std::make_unique<LutStates>(config_, options, info_.device);
}

void LutModel::detect(const Block& block, const Tensor& x, LutStates& states) const {
  const Layer& layer = *block.layer;
  const LutDetectArgs args{.x = x.data_as<float>(),
                           .anchors = layer.anchors().data_as<int32_t>(),
                           .index = states.work.index.data_as<int32_t>(),
                           .min_delta = nullptr,
                           .min_index = nullptr,
                           .rows = x.dim(0),
                           .inputs = config_.embedding_dim,
                           .num_tables = layer.num_tables(),
                           .num_anchors = layer.num_anchors(),
                           .cmp_eps = layer.options().cmp_eps};
  call_kernel(info_.device, &Kernels::lut_check_detectors, "lut_check_detectors", states.handle(), args);
}

// z += attention(z)
void LutModel::attend(Step& step, size_t number) const {
  const Block& block = weights_.attention[number];
  LutStates& s = step.states;
  Tensor z = s.work.z.slice(0, step.tokens);
  detect(block, z, s);
  const int64_t tables = block.layer->num_tables();
  const int64_t layer_values = s.cache.dim(1) * s.ring() * tables;
  const LutDecodeArgs args{.table = block.layer->table(block.weights.data_as<float>()),
                           .index = s.work.index.data_as<int32_t>(),
                           .slots = step.input(1, step.tokens).data_as<int32_t>(),
                           .positions = step.input(2, step.tokens).data_as<int32_t>(),
                           .pe_index = config_.positional_dim ? block.pe_index.data_as<int32_t>() : nullptr,
                           .cache = s.cache.data_as<int32_t>() + static_cast<int64_t>(number) * layer_values,
                           .y = z.data_as<float>(),
                           .rows = step.tokens,
                           .ring = s.ring(),
                           .window = config_.context_size - 1,
                           .numerics = block.layer->numerics(),
                           .num_anchors = static_cast<int32_t>(config_.attention_anchors),
                           .num_pe = static_cast<int32_t>(config_.positional_dim),
                           .accumulate = 1};
  call_kernel(info_.device, &Kernels::lut_decode, "lut_decode", s.handle(), args);
  if (block.shift) look_up(*block.shift, z, s, z, true);
}

// y = (accumulate: y +) the layer's outputs for x
void LutModel::look_up(const Block& block, const Tensor& x, LutStates& states, Tensor& y,
                       bool accumulate) const {
  detect(block, x, states);
  const LutForwardArgs args{.table = block.layer->table(block.weights.data_as<float>()),
                            .index = states.work.index.data_as<int32_t>(),
                            .y = y.data_as<float>(),
                            .rows = x.dim(0),
                            .numerics = block.layer->numerics(),
                            .accumulate = accumulate};
  call_kernel(info_.device, &Kernels::lut_fill_outputs, "lut_fill_outputs", states.handle(), args);
  if (block.shift) look_up(*block.shift, x, states, y, true);
}

Tensor LutModel::logits(Step& step) const {
  StepMemory& w = step.states.work;
  const int64_t count = step.every_row ? step.tokens : step.rows;
  if (count > w.logits.dim(0) && (!w.all_logits.data() || w.all_logits.dim(0) < count))
    w.all_logits = Tensor::empty({count, config_.vocab_size}, Dtype::f32, info_.device);
  Tensor out = (count > w.logits.dim(0) ? w.all_logits : w.logits).slice(0, count);
  if (count == 0) return out;
  Tensor rows = w.z.slice(0, step.tokens);
  if (!step.every_row) {
    Tensor chosen = w.chosen.slice(0, count);
    ops::embedding(step.states.stream.get(), step.input(3, count), rows, chosen);
    rows = chosen;
  }
  look_up(weights_.unembedder, rows, step.states, out, false);
  return out;
}

// Puts the whole step on the stream; on the CPU runs it.
Tensor LutModel::enqueue(Step& step) const {
  LutStates& s = step.states;
  copy_inputs(s.stream.get(), s.work.staging, s.work.inputs);
  Tensor z = s.work.z.slice(0, step.tokens);
  ops::embedding(s.stream.get(), step.input(0, step.tokens), weights_.embedding, z);
  for (size_t l = 0; l < weights_.attention.size(); ++l) {
    step.check();
    attend(step, l);
    if (!weights_.ffn.empty()) look_up(weights_.ffn[l], z, s, z, true);
  }
  step.check();
  return logits(step);
}

Tensor LutModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* own = dynamic_cast<LutStates*>(&states);
  TRIVIUM_CHECK(own, "forward: the states belong to another kind of model");
  TRIVIUM_CHECK(weights_.archive, "forward: the model was loaded without weights");
  check_batch(batch, own->options(), config_.vocab_size, [&](const Segment& s) { check_segment(s, *own); });
  Step step{*own, cancel, static_cast<int64_t>(batch.tokens.size())};
  if (step.tokens == 0) return logits(step);
  step.every_row = is_decode_step(batch);
  if (own->stream && step.every_row) step.tokens = padded_batch(step.tokens);
  step.rows = pack_tokens(batch, step.tokens, own->num_slots(), own->work.staging);
  const Tensor out = run_step(own->stream.get(), own->graphs, batch, {step.every_row, step.tokens, step.rows},
                              own->work.logits, [&] { return enqueue(step); });
  weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void LutModel::warm_up(const CancelToken* cancel) {
  if (info_.device.kind != DeviceKind::cpu) return;
  touch_pages(weights_.embedding, cancel);
  for (const auto* blocks : {&weights_.attention, &weights_.ffn})
    for (const Block& b : *blocks) touch_pages(b.weights, cancel);
  touch_pages(weights_.unembedder.weights, cancel);
}

}  // namespace trivium::lut
