#include "models/mlstm/weights.h"

#include <set>

#include "core/log.h"
#include "models/scan.h"

namespace trivium::xlstm {
namespace {

constexpr int64_t kCopiedBytes =
    2 << 20;  // larger matrices move to memory of our own, where pages may be huge

class Source {
 public:
  Source(const io::TensorArchive& archive, const std::string& path, const LoadOptions& options)
      : archive_(archive), path_(path), scan_(options) {
    scan_.expect(archive.total_bytes());
  }

  // The tensor under the first of `names` that is there; undefined, and noted, when none is.
  Tensor take(std::initializer_list<std::string> names, const Shape& shape) {
    for (const std::string& name : names) {
      if (!archive_.contains(name)) continue;
      used_.insert(name);
      const Tensor t = archive_.tensor(name);
      if (!(t.shape() == shape))
        throw ModelFormatError(
            concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.shape(), ", expected ", shape));
      if (t.dtype() != Dtype::bf16 && t.dtype() != Dtype::f16 && t.dtype() != Dtype::f32)
        throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.dtype(),
                                      ", expected bfloat16, float16 or float32"));
      scan_.dense(t, archive_.file_of(name), name);
      if (shape.rank() < 2 || t.nbytes() < kCopiedBytes || !archive_.is_mapped(t)) return t;
      return copy_to_memory(t, [&](const Tensor& done) { archive_.drop_pages(done); });
    }
    missing_.push_back(*names.begin());
    return {};
  }
  ops::Weight matrix(std::initializer_list<std::string> names, const Shape& shape) {
    return weight(take(names, shape));
  }
  static ops::Weight weight(const Tensor& t) {
    return t.data() ? ops::Weight::dense(t, "weight") : ops::Weight{};
  }
  bool has(const std::string& name) const { return archive_.contains(name); }

  void finish() const {
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
  const io::TensorArchive& archive_;
  const std::string path_;
  WeightScan scan_;
  std::set<std::string> used_;
  std::vector<std::string> missing_;
};

// Consecutive runs of rows of one matrix.
void split_rows(const Tensor& all, std::initializer_list<std::pair<ops::Weight*, int64_t>> parts) {
  if (!all.data()) return;
  int64_t begin = 0;
  for (const auto& [part, rows] : parts) {
    *part = Source::weight(all.slice(begin, begin + rows));
    begin += rows;
  }
}

void load_projections(Source& s, const XlstmConfig& c, const std::string& p, LayerWeights& w) {
  const int64_t D = c.hidden_size, Q = c.qk_dim, W = c.v_dim, NH = c.num_heads;
  if (c.fused_weights || s.has(p + "qkv_opreact.weight")) {
    split_rows(s.take({p + "qkv_opreact.weight"}, {2 * Q + 2 * W, D}),
               {{&w.q, Q}, {&w.k, Q}, {&w.v, W}, {&w.o, W}});
    split_rows(s.take({p + "ifgate_preact.weight"}, {2 * NH, D}), {{&w.i, NH}, {&w.f, NH}});
    const Tensor bias = s.take({p + "ifgate_preact.bias"}, {2 * NH});
    if (bias.data()) w.i_bias = bias.slice(0, NH), w.f_bias = bias.slice(NH, 2 * NH);
    return;
  }
  w.q = s.matrix({p + "q.weight", p + "query.weight"}, {Q, D});
  w.k = s.matrix({p + "k.weight", p + "key.weight"}, {Q, D});
  w.v = s.matrix({p + "v.weight", p + "value.weight"}, {W, D});
  w.o = s.matrix({p + "ogate_preact.weight"}, {W, D});
  w.i = s.matrix({p + "igate_preact.weight"}, {NH, D});
  w.f = s.matrix({p + "fgate_preact.weight"}, {NH, D});
  w.i_bias = s.take({p + "igate_preact.bias"}, {NH});
  w.f_bias = s.take({p + "fgate_preact.bias"}, {NH});
}

LayerWeights load_layer(Source& s, const XlstmConfig& c, int64_t layer) {
  const std::string block = concat("backbone.blocks.", layer, "."), p = block + "mlstm_layer.",
                    ffn = block + "ffn.";
  const int64_t D = c.hidden_size, U = c.intermediate_size;
  LayerWeights w;
  w.norm_mlstm = s.take({block + "norm_mlstm.weight"}, {D});
  load_projections(s, c, p, w);
  w.head_norm = s.take({p + "multihead_norm.weight"}, {c.v_dim});
  w.out = s.matrix({p + "out_proj.weight"}, {D, c.v_dim});
  w.norm_ffn = s.take({block + "norm_ffn.weight"}, {D});
  if (c.fused_weights || s.has(ffn + "proj_up_gate_z.weight")) {
    split_rows(s.take({ffn + "proj_up_gate_z.weight"}, {2 * U, D}), {{&w.up_gate, U}, {&w.up, U}});
  } else {
    w.up_gate = s.matrix({ffn + "proj_up_gate.weight"}, {U, D});
    w.up = s.matrix({ffn + "proj_up.weight"}, {U, D});
  }
  w.down = s.matrix({ffn + "proj_down.weight"}, {D, U});
  return w;
}

}  // namespace

XlstmWeights load_weights(const std::shared_ptr<const io::TensorArchive>& archive, const std::string& path,
                          const XlstmConfig& c, const LoadOptions& options) {
  Source s(*archive, path, options);
  const Shape table{c.vocab_size, c.hidden_size};
  XlstmWeights w;
  w.archive = archive;
  w.embedding =
      s.take({"backbone.embeddings.weight", "backbone.embedding.weight", "embedding.weight"}, table);
  for (int64_t l = 0; l < c.num_layers; ++l) w.layers.push_back(load_layer(s, c, l));
  w.out_norm = s.take({"backbone.out_norm.weight"}, {c.hidden_size});
  if (c.tie_word_embeddings && !s.has("lm_head.weight"))
    w.lm_head = Source::weight(w.embedding);
  else
    w.lm_head = s.matrix({"lm_head.weight"}, table);
  s.finish();
  archive->check_unchanged();
  return w;
}

}  // namespace trivium::xlstm
