#include "models/moe/weights.h"

#include <array>
#include <optional>
#include <set>

#include "core/log.h"
#include "models/scan.h"
#include "models/upload.h"

namespace trivium::moe {
namespace {

// Dense matrices of this size are read in full for every token and are worth huge pages; experts stay mapped.
constexpr int64_t kCopiedBytes = 2 << 20;

// Takes tensors out of the archive by name, checking shapes, and remembers which were missing.
class Source {
 public:
  Source(const io::TensorArchive& archive, const std::string& path, const LoadOptions& options)
      : archive_(archive), path_(path), scan_(options), narrow_(options.precision == Precision::bfloat16) {
    scan_.expect(archive.total_bytes());
    if (is_gpu(options.device.kind)) uploader_.emplace(options.device, options.cancel);
  }

  bool on_gpu() const { return uploader_.has_value(); }

  // Where the model will find the tensor: on its device, or as it is.
  Tensor place(const Tensor& t) {
    if (!uploader_ || !t.data()) return t;
    const Tensor out = uploader_->upload(t);
    if (archive_.is_mapped(t)) archive_.drop_pages(t);
    return out;
  }

  ops::Weight place_matrix(const Tensor& t, const std::string& name) {
    if (!t.data()) return {};
    return ops::Weight::dense(place(uploader_ && narrow_ ? t.to(Dtype::bf16) : t), name.c_str());
  }

  Tensor vector(const std::string& name, const Shape& shape) { return place(dense(name, shape)); }

  // Dense tensor of exactly `shape`, where the file has it; undefined (and noted) when missing.
  Tensor dense(const std::string& name, const Shape& shape) {
    used_.insert(name);
    if (!archive_.contains(name)) {
      missing_.push_back(name);
      return {};
    }
    const Tensor t = archive_.tensor(name);
    if (!(t.shape() == shape))
      throw ModelFormatError(
          concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.shape(), ", expected ", shape));
    if (t.dtype() != Dtype::bf16 && t.dtype() != Dtype::f16 && t.dtype() != Dtype::f32)
      throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.dtype(),
                                    ", expected bfloat16, float16 or float32"));
    scan_.dense(t, archive_.file_of(name), name);
    return t;
  }

  ops::Weight matrix(const std::string& name, const Shape& shape) {
    Tensor t = dense(name, shape);
    if (!t.data()) return {};
    const bool streamed = !on_gpu() && shape.rank() == 2 && t.nbytes() >= kCopiedBytes;
    if (streamed && archive_.is_mapped(t))
      t = copy_to_memory(t, [&](const Tensor& done) { archive_.drop_pages(done); });
    return place_matrix(t, name);
  }

  // MXFP4 pair of the logical shape [E, rows, cols].
  ops::Weight mxfp4(const std::string& blocks_name, const std::string& scales_name, const Shape& shape) {
    if (shape[2] % kMxBlock != 0)
      throw ModelFormatError(concat(archive_.file_of(blocks_name), ": tensor \"", blocks_name,
                                    "\" is MXFP4, but its rows have ", shape[2],
                                    " columns, expected a multiple of ", kMxBlock));
    const Shape blocks_shape{shape[0], shape[1], shape[2] / kMxBlock, kMxBlockBytes};
    const Tensor blocks = bytes(blocks_name, blocks_shape);
    const Tensor scales = bytes(scales_name, {shape[0], shape[1], shape[2] / kMxBlock});
    if (!blocks.data() || !scales.data()) return {};
    scan_.scales(scales, archive_.file_of(scales_name), scales_name);
    scan_.skip(blocks.nbytes());
    return ops::Weight::mxfp4(place(blocks), place(scales), blocks_name.c_str());
  }

  // Dense experts stored [E, in, out] as a [E, out, in] matrix in memory of our own.
  ops::Weight transposed(const std::string& name, const Shape& shape) {
    const Tensor stored = dense(name, {shape[0], shape[2], shape[1]});
    if (!stored.data()) return {};
    return place_matrix(transpose_experts(stored, [&](const Tensor& done) { archive_.drop_pages(done); }),
                        name);
  }

  bool has(const std::string& name) const { return archive_.contains(name); }

  void finish() {
    if (uploader_) uploader_->finish();
    if (!missing_.empty()) {
      std::string list;
      for (size_t i = 0; i < missing_.size() && i < 5; ++i) list += (i ? ", " : "") + missing_[i];
      if (missing_.size() > 5) list += concat(" and ", missing_.size() - 5, " more");
      throw ModelFormatError(concat(path_, ": missing tensors: ", list));
    }
    size_t extra = 0;
    std::string first;
    for (const auto& [name, entry] : archive_.entries())
      if (!used_.contains(name) && extra++ == 0) first = name;
    if (extra > 0)
      warn(concat(archive_.file_of(first), ": ", extra, " tensor(s) are not used, the first is \"",
                  printable(first), "\""));
  }

 private:
  Tensor bytes(const std::string& name, const Shape& shape) {
    used_.insert(name);
    if (!archive_.contains(name)) {
      missing_.push_back(name);
      return {};
    }
    const Tensor t = archive_.tensor(name);
    if (t.dtype() != Dtype::u8 || !(t.shape() == shape))
      throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.shape(), " ",
                                    t.dtype(), ", expected ", shape, " uint8"));
    return t;
  }

  const io::TensorArchive& archive_;
  const std::string path_;
  WeightScan scan_;
  const bool narrow_;  // dense matrices become bf16 on a GPU
  std::optional<Uploader> uploader_;
  std::set<std::string> used_;
  std::vector<std::string> missing_;
};

// Experts under either spelling: NAME_blocks + NAME_scales, or dense NAME.
ops::Weight hf_experts(Source& source, const std::string& name, const Shape& shape, bool mxfp4) {
  if (mxfp4 || source.has(name + "_blocks")) return source.mxfp4(name + "_blocks", name + "_scales", shape);
  return source.transposed(name, shape);
}

// The rows of q, k and v as one matrix for a GPU. Biases that are absent beside others count as zeros.
void place_qkv(Source& s, const std::array<Tensor, 3>& matrices, const std::array<Tensor, 3>& biases,
               LayerWeights& w) {
  for (const Tensor& m : matrices)
    if (!m.data()) return;
  w.qkv = s.place_matrix(stack_rows({matrices[0], matrices[1], matrices[2]}), "qkv");
  std::array<Tensor, 3> wide;
  bool any = false;
  for (size_t i = 0; i < 3; ++i) {
    any |= biases[i].data() != nullptr;
    wide[i] = biases[i].data() ? biases[i].to(Dtype::f32) : Tensor::zeros({matrices[i].dim(0)}, Dtype::f32);
  }
  if (any) w.qkv_bias = s.place(stack_rows({wide[0], wide[1], wide[2]}));
}

void hf_qkv(Source& s, const MoeConfig& c, const std::string& p, LayerWeights& w) {
  const std::array<std::string, 3> names{p + "self_attn.q_proj", p + "self_attn.k_proj",
                                         p + "self_attn.v_proj"};
  const std::array<int64_t, 3> rows{c.q_dim(), c.kv_dim(), c.kv_dim()};
  const std::array<ops::Weight*, 3> weights{&w.q, &w.k, &w.v};
  std::array<Tensor, 3> matrices, biases;
  for (size_t i = 0; i < 3; ++i) {
    const Shape shape{rows[i], c.hidden_size};
    if (s.on_gpu())
      matrices[i] = s.dense(names[i] + ".weight", shape);
    else
      *weights[i] = s.matrix(names[i] + ".weight", shape);
    if (c.attention_bias || s.has(names[i] + ".bias")) biases[i] = s.dense(names[i] + ".bias", {rows[i]});
  }
  if (s.on_gpu()) return place_qkv(s, matrices, biases, w);
  w.q_bias = biases[0];
  w.k_bias = biases[1];
  w.v_bias = biases[2];
}

LayerWeights hf_layer(Source& s, const MoeConfig& c, int64_t layer) {
  const std::string p = concat("model.layers.", layer, ".");
  const int64_t H = c.hidden_size, E = c.num_experts, I = c.intermediate_size;
  LayerWeights w;
  w.input_norm = s.vector(p + "input_layernorm.weight", {H});
  hf_qkv(s, c, p, w);
  w.o = s.matrix(p + "self_attn.o_proj.weight", {H, c.q_dim()});
  const std::string o_bias = p + "self_attn.o_proj.bias";
  if (c.attention_bias || s.has(o_bias)) w.o_bias = s.vector(o_bias, {H});
  w.sinks = s.vector(p + "self_attn.sinks", {c.num_heads});
  w.post_norm = s.vector(p + "post_attention_layernorm.weight", {H});
  w.router = s.matrix(p + "mlp.router.weight", {E, H});
  w.router_bias = s.vector(p + "mlp.router.bias", {E});
  w.gate_up = hf_experts(s, p + "mlp.experts.gate_up_proj", {E, 2 * I, H}, c.mxfp4);
  w.gate_up_bias = s.vector(p + "mlp.experts.gate_up_proj_bias", {E, 2 * I});
  w.down = hf_experts(s, p + "mlp.experts.down_proj", {E, H, I}, c.mxfp4);
  w.down_bias = s.vector(p + "mlp.experts.down_proj_bias", {E, H});
  return w;
}

// One matrix of all q rows, then k, then v; on the CPU seen as three.
void openai_qkv(Source& s, const MoeConfig& c, const std::string& p, LayerWeights& w) {
  const int64_t k = c.q_dim(), v = k + c.kv_dim(), end = v + c.kv_dim();
  const ops::Weight qkv = s.matrix(p + "attn.qkv.weight", {end, c.hidden_size});
  const Tensor bias = s.vector(p + "attn.qkv.bias", {end});
  if (!qkv.data.data() || !bias.data()) return;
  if (s.on_gpu()) {
    w.qkv = qkv;
    w.qkv_bias = bias;
    return;
  }
  w.q = ops::Weight::dense(qkv.data.slice(0, k), "qkv.weight");
  w.k = ops::Weight::dense(qkv.data.slice(k, v), "qkv.weight");
  w.v = ops::Weight::dense(qkv.data.slice(v, end), "qkv.weight");
  w.q_bias = bias.slice(0, k);
  w.k_bias = bias.slice(k, v);
  w.v_bias = bias.slice(v, end);
}

LayerWeights openai_layer(Source& s, const MoeConfig& c, int64_t layer) {
  const std::string p = concat("block.", layer, ".");
  const int64_t H = c.hidden_size, E = c.num_experts, I = c.intermediate_size;
  // model.bin holds dense experts in the logical order, the safetensors release MXFP4.
  const auto experts = [&](const std::string& name, const Shape& shape) {
    return s.has(p + name) ? s.matrix(p + name, shape)
                           : s.mxfp4(p + name + ".blocks", p + name + ".scales", shape);
  };
  LayerWeights w;
  w.input_norm = s.vector(p + "attn.norm.scale", {H});
  openai_qkv(s, c, p, w);
  w.sinks = s.vector(p + "attn.sinks", {c.num_heads});
  w.o = s.matrix(p + "attn.out.weight", {H, c.q_dim()});
  w.o_bias = s.vector(p + "attn.out.bias", {H});
  w.post_norm = s.vector(p + "mlp.norm.scale", {H});
  w.router = s.matrix(p + "mlp.gate.weight", {E, H});
  w.router_bias = s.vector(p + "mlp.gate.bias", {E});
  w.gate_up = experts("mlp.mlp1_weight", {E, 2 * I, H});
  w.gate_up_bias = s.vector(p + "mlp.mlp1_bias", {E, 2 * I});
  w.down = experts("mlp.mlp2_weight", {E, H, I});
  w.down_bias = s.vector(p + "mlp.mlp2_bias", {E, H});
  return w;
}

// Smaller matrices stay in the cache. The bound on memory keeps a loaded model within a tenth (and some) of its
// files.
constexpr int64_t kScreenedBytes = 8 << 20, kScreenAllowance = int64_t{200} << 20;

bool screen_pays(const ops::Weight& w, int64_t file_bytes) {
  return w.device().kind == DeviceKind::cpu && w.format == WeightFormat::bf16 &&
         w.data.nbytes() >= kScreenedBytes &&
         ops::RowScreen::bytes(w.shape) <= file_bytes / 10 + kScreenAllowance;
}

}  // namespace

MoeWeights load_weights(const std::shared_ptr<const io::TensorArchive>& archive, const std::string& path,
                        const MoeConfig& c, Layout layout, const LoadOptions& options) {
  Source source(*archive, path, options);
  const bool hf = layout == Layout::hugging_face;
  const Shape table{c.vocab_size, c.hidden_size};
  const char* unembedding = hf ? "lm_head.weight" : "unembedding.weight";
  MoeWeights w;
  if (!source.on_gpu()) w.archive = archive;
  w.embedding = source.vector(hf ? "model.embed_tokens.weight" : "embedding.weight", table);
  for (int64_t l = 0; l < c.num_layers; ++l)
    w.layers.push_back(hf ? hf_layer(source, c, l) : openai_layer(source, c, l));
  w.final_norm = source.vector(hf ? "model.norm.weight" : "norm.scale", {c.hidden_size});
  if (c.tie_word_embeddings && !source.has(unembedding) && w.embedding.data())
    w.unembedding = ops::Weight::dense(w.embedding, unembedding);
  else
    w.unembedding = source.matrix(unembedding, table);
  source.finish();
  if (screen_pays(w.unembedding, archive->total_bytes()))
    w.screen = ops::make_row_screen(w.unembedding, options.cancel);
  if (source.on_gpu()) archive->check_readable();  // else zeros were uploaded where the file is gone
  archive->check_unchanged();
  return w;
}

}  // namespace trivium::moe
