// From a folder that trivium.lut.LUTTransformer.save wrote to a LutModel.
#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "core/registry.h"
#include "models/folder.h"
#include "models/lut/model.h"
#include "models/weight_source.h"

namespace trivium::lut {
namespace {

struct BlockShape {
  int64_t tables, pairs, outputs;
  bool attention, normalised;
};

// weight * (y - mean) / sqrt(variance + epsilon) + bias = scale * y + shift, in evaluation.
struct BatchNorm {
  static constexpr double kEpsilon = 1e-5;  // as python/trivium/lut/batch_norm.py adds it
  Tensor scale, shift;                      // f32 [E], on the host

  BatchNorm(WeightSource& source, const std::string& name, int64_t channels)
      : scale(Tensor::empty({channels}, Dtype::f32)), shift(Tensor::empty({channels}, Dtype::f32)) {
    const Tensor weight = source.scanned(name + ".weight", {channels});
    const Tensor bias = source.scanned(name + ".bias", {channels});
    const Tensor mean = source.scanned(name + ".running_mean", {channels});
    const Tensor variance = source.scanned(name + ".running_var", {channels});
    for (int64_t e = 0; e < channels; ++e) {
      const double v = variance.data_as<float>()[e];
      if (v < 0)
        throw ModelFormatError(concat(source.archive().file_of(name + ".running_var"), ": tensor \"", name,
                                      ".running_var\" holds ", v, ", expected variances of at least 0"));
      const double s = weight.data_as<float>()[e] / std::sqrt(v + kEpsilon);
      scale.data_as<float>()[e] = static_cast<float>(s);
      shift.data_as<float>()[e] = static_cast<float>(bias.data_as<float>()[e] - s * mean.data_as<float>()[e]);
    }
  }

  // weights [.., E], their last axis scaled.
  Tensor scaled(const Tensor& weights) const {
    const Tensor out = Tensor::empty(weights.shape(), Dtype::f32);
    const int64_t channels = scale.numel(), rows = weights.numel() / channels;
    constexpr int64_t kRows = 1 << 12;
    const float *from = weights.data_as<float>(), *factor = scale.data_as<float>();
    float* to = out.data_as<float>();
    parallel_for((rows + kRows - 1) / kRows, [&](int64_t task, int) {
      for (int64_t r = task * kRows; r < std::min(rows, (task + 1) * kRows); ++r)
        for (int64_t e = 0; e < channels; ++e) to[r * channels + e] = from[r * channels + e] * factor[e];
    });
    return out;
  }

  // A layer that gives `shift` whatever its inputs are: one table whose only pair is unused.
  std::unique_ptr<Block> constant(Device device) const {
    const int64_t channels = shift.numel();
    LayerOptions o;
    o.inputs = o.outputs = channels;
    o.anchors = Tensor::empty({1, 1, 2}, Dtype::i32);
    std::fill_n(o.anchors.data_as<int32_t>(), 2, -1);
    Tensor rows = Tensor::zeros({1, 2, channels}, Dtype::f32);
    std::copy_n(shift.data_as<float>(), channels, rows.data_as<float>());
    auto block = std::make_unique<Block>();
    block->layer = std::make_unique<Layer>(std::move(o), device);
    block->weights = rows.to(device);
    return block;
  }
};

Block load_block(WeightSource& source, const LutConfig& c, const std::string& name, const BlockShape& shape) {
  LayerOptions o;
  o.inputs = c.embedding_dim;
  o.outputs = shape.outputs;
  o.cmp_eps = static_cast<float>(c.cmp_eps);
  o.anchors = source.stored(name + ".anchors", {shape.tables, shape.pairs, 2}, Dtype::i32);
  if (shape.attention) {
    o.mode = Mode::sequence;
    o.sequence_length = c.context_size;
    o.positional_dim = c.positional_dim;
    o.unified_pe = c.unified_pe;
  }
  Block block;
  try {
    block.layer = std::make_unique<Layer>(o, source.device());
  } catch (const InvalidArgument& e) {
    throw ModelFormatError(
        concat(source.archive().file_of(name + ".anchors"), ": \"", name, "\": ", e.what()));
  }
  if (c.use_batch_norm && shape.normalised) {
    const BatchNorm norm(source, name + "_norm", c.embedding_dim);
    block.weights =
        norm.scaled(source.scanned(name + ".weight", block.layer->weight_shape())).to(source.device());
    block.shift = norm.constant(source.device());
  } else {
    block.weights = source.weights(name + ".weight", block.layer->weight_shape());
  }
  if (!shape.attention || c.positional_dim == 0) return block;
  const Tensor pe = source.weights(name + ".positional_embeddings", block.layer->pe_shape());
  block.pe_index = Tensor::empty({c.context_size - 1, shape.tables}, Dtype::i32, source.device());
  const LutDetectPeArgs args{.pe = pe.data_as<float>(),
                             .index = block.pe_index.data_as<int32_t>(),
                             .min_delta = nullptr,
                             .min_index = nullptr,
                             .distances = c.context_size - 1,
                             .num_tables = shape.tables,
                             .num_pe = c.positional_dim,
                             .cmp_eps = o.cmp_eps,
                             .unified = c.unified_pe};
  source.wait();
  call_kernel(source.device(), &Kernels::lut_check_positional_embeddings, "lut_check_positional_embeddings",
              nullptr, args);
  return block;
}

LutWeights load_weights(const std::shared_ptr<io::TensorArchive>& archive, const std::string& path,
                        const LutConfig& c, const LoadOptions& options) {
  WeightSource source(*archive, path, options);
  LutWeights w;
  w.embedding = source.weights("embedding", {c.vocab_size, c.embedding_dim});
  for (int64_t l = 0; l < c.num_layers; ++l) {
    const std::string layer = concat("layers.", l, '.');
    w.attention.push_back(
        load_block(source, c, layer + "attention",
                   {c.num_heads * c.num_tables, c.attention_anchors, c.embedding_dim, true, true}));
    if (!c.no_ffn)
      w.ffn.push_back(
          load_block(source, c, layer + "ffn", {c.num_tables, c.num_anchors, c.embedding_dim, false, true}));
  }
  w.unembedder =
      load_block(source, c, "unembedder", {c.num_tables, c.num_anchors, c.vocab_size, false, false});
  source.finish();
  archive->check_unchanged();
  w.archive = archive;
  return w;
}

}  // namespace

std::shared_ptr<Model> load_folder(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options) {
  TRIVIUM_CHECK(options.odd_window == 0, "odd_window is ", options.odd_window,
                ", but lut_transformer has no full-attention layers");
  TRIVIUM_CHECK(options.precision != Precision::bfloat16,
                "precision is bfloat16, expected auto or float32 for lut_transformer");
  const std::string name = folder + "/config.json";
  const LutConfig config = parse_config(io::parse_json_document(config_text, name), name);
  const auto archive = io::TensorArchive::open(folder, options.load_mode, options.cancel);
  auto tokenizer = tokenizer_of({folder}, config.vocab_size, options);
  LutWeights weights;
  if (options.load_weights) {
    check_weights_fit(folder, archive->total_bytes(), options.device);
    weights = load_weights(archive, folder, config, options);
  }
  ModelInfo info = info_of("lut_transformer", folder, config_text, *archive, Precision::float32, options);
  info.vocab_size = static_cast<int32_t>(config.vocab_size);
  info.max_positions = config.max_positions;
  info.stop_ids = config.eos_ids;
  return std::make_shared<LutModel>(config, std::move(weights), std::move(info), std::move(tokenizer));
}

}  // namespace trivium::lut
