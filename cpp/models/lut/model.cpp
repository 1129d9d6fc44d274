#include "models/lut/model.h"

#include "core/registry.h"
#include "models/scan.h"
#include "ops/ops.h"

namespace trivium::lut {

// One forward(): its inputs and the rows that need logits.
struct LutModel::Step {
  const Batch& batch;
  LutStates& states;
  int64_t tokens;
  std::vector<int32_t> rows;
};

namespace {

void check_batch(const Batch& batch, const LutStates& states, const LutConfig& c) {
  int64_t total = 0;
  std::vector<bool> seen(static_cast<size_t>(states.num_slots()));
  for (const Segment& s : batch.segments) {
    TRIVIUM_CHECK(s.slot >= 0 && s.slot < states.num_slots(), "forward: slot ", s.slot, " of ",
                  states.num_slots());
    TRIVIUM_CHECK(!seen[static_cast<size_t>(s.slot)], "forward: slot ", s.slot, " appears twice");
    seen[static_cast<size_t>(s.slot)] = true;
    TRIVIUM_CHECK(s.count >= 1 && s.start >= 0 && s.count <= states.reserved(s.slot) - s.start,
                  "forward: slot ", s.slot, " has room for ", states.reserved(s.slot), " positions, ",
                  s.count, " from ", s.start, " are needed");
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

// Host values to the start of a device tensor.
void upload(const std::vector<int32_t>& values, Tensor& to) {
  const Device device = to.device();
  const Status s = runtime(device).copy(device.index, nullptr, to.data(), values.data(),
                                        static_cast<int64_t>(values.size()) * 4);
  if (s != Status::ok) throw_status(device.kind, s);
}

}  // namespace

LutModel::LutModel(LutConfig config, LutWeights weights, ModelInfo info,
                   std::shared_ptr<const io::Tokenizer> tokenizer)
    : config_(std::move(config)), weights_(std::move(weights)), info_(std::move(info)) {
  tokenizer_ = std::move(tokenizer);
}

int64_t LutModel::state_bytes(const StateOptions& options) const {
  return LutStates::bytes_for(config_, options);
}

std::unique_ptr<SequenceStates> LutModel::make_states(const StateOptions& options) const {
  return std::make_unique<LutStates>(config_, options, info_.device);
}

void LutModel::detect(const Block& block, const Tensor& x, LutStates& states) const {
  const Layer& layer = *block.layer;
  const LutDetectArgs args{.x = x.data_as<float>(),
                           .anchors = layer.anchors().data_as<int32_t>(),
                           .index = states.index.data_as<int32_t>(),
                           .min_delta = nullptr,
                           .min_index = nullptr,
                           .rows = x.dim(0),
                           .inputs = config_.embedding_dim,
                           .num_tables = layer.num_tables(),
                           .num_anchors = layer.num_anchors(),
                           .cmp_eps = layer.options().cmp_eps};
  call_kernel(info_.device, &Kernels::lut_check_detectors, "lut_check_detectors", nullptr, args);
}

// z += attention(z)
void LutModel::attend(Step& step, size_t number) const {
  const Block& block = weights_.attention[number];
  LutStates& s = step.states;
  Tensor z = s.z.slice(0, step.tokens);
  detect(block, z, s);
  const int64_t tables = block.layer->num_tables();
  const int64_t layer_values = s.num_slots() * s.ring() * tables;
  const LutDecodeArgs args{.table = block.layer->table(block.weights.data_as<float>()),
                           .index = s.index.data_as<int32_t>(),
                           .slots = s.slots.data_as<int32_t>(),
                           .positions = s.positions.data_as<int32_t>(),
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
  call_kernel(info_.device, &Kernels::lut_decode, "lut_decode", nullptr, args);
}

// y = (accumulate: y +) the layer's outputs for x
void LutModel::look_up(const Block& block, const Tensor& x, LutStates& states, Tensor& y,
                       bool accumulate) const {
  detect(block, x, states);
  const LutForwardArgs args{.table = block.layer->table(block.weights.data_as<float>()),
                            .index = states.index.data_as<int32_t>(),
                            .y = y.data_as<float>(),
                            .rows = x.dim(0),
                            .numerics = block.layer->numerics(),
                            .accumulate = accumulate};
  call_kernel(info_.device, &Kernels::lut_fill_outputs, "lut_fill_outputs", nullptr, args);
}

Tensor LutModel::logits(Step& step) const {
  LutStates& s = step.states;
  const auto count = static_cast<int64_t>(step.rows.size());
  if (!s.logits.data() || s.logits.dim(0) < count)
    s.logits = Tensor::empty({std::max<int64_t>(count, s.num_slots()), config_.vocab_size}, Dtype::f32,
                             info_.device);
  Tensor out = s.logits.slice(0, count);
  if (count == 0) return out;
  // The rows asked for, picked as embeddings are.
  upload(step.rows, s.ids);
  Tensor rows = s.gathered.slice(0, count);
  const EmbeddingArgs pick{.ids = s.ids.data_as<int32_t>(),
                           .table = s.z.data(),
                           .y = rows.data_as<float>(),
                           .tokens = count,
                           .vocab = step.tokens,
                           .dim = config_.embedding_dim,
                           .table_dtype = Dtype::f32};
  call_kernel(info_.device, &Kernels::embedding, "embedding", nullptr, pick);
  look_up(weights_.unembedder, rows, s, out, false);
  return out;
}

Tensor LutModel::forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) {
  auto* own = dynamic_cast<LutStates*>(&states);
  TRIVIUM_CHECK(own, "forward: the states belong to another kind of model");
  check_batch(batch, *own, config_);
  Step step{batch, *own, static_cast<int64_t>(batch.tokens.size()), {}};
  if (step.tokens == 0) return logits(step);
  std::vector<int32_t> slots, positions;
  for (const Segment& s : batch.segments)
    for (int64_t i = 0; i < s.count; ++i) {
      if (s.wants(i))
        step.rows.push_back(static_cast<int32_t>(slots.size()));
      slots.push_back(s.slot);
      positions.push_back(static_cast<int32_t>(s.start + i));
    }
  upload({batch.tokens.begin(), batch.tokens.end()}, own->ids);
  upload(slots, own->slots);
  upload(positions, own->positions);
  Tensor z = own->z.slice(0, step.tokens);
  ops::embedding(nullptr, own->ids.slice(0, step.tokens), weights_.embedding, z);
  for (size_t l = 0; l < weights_.attention.size(); ++l) {
    if (cancel) cancel->check();
    attend(step, l);
    if (!weights_.ffn.empty()) look_up(weights_.ffn[l], z, *own, z, true);
  }
  if (cancel) cancel->check();
  Tensor out = logits(step);
  weights_.archive->check_readable();  // else zeros stood where weights are gone
  return out;
}

void LutModel::warm_up() {
  if (info_.device.kind != DeviceKind::cpu) return;
  touch_pages(weights_.embedding);
  for (const auto* blocks : {&weights_.attention, &weights_.ffn})
    for (const Block& b : *blocks) touch_pages(b.weights);
  touch_pages(weights_.unembedder.weights);
}

}  // namespace trivium::lut
