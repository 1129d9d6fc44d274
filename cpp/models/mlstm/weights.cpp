#include "models/mlstm/weights.h"

#include <array>

#include "models/weight_source.h"

namespace trivium::xlstm {
namespace {

// Rows of a layer that are read together: matrices of their own in the checkpoint, or one of all their rows.
struct Part {
  TensorNames names;
  int64_t rows;
  ops::Weight* weight;
};

// On the host; f32 when the parts differ in type. Undefined when one is missing.
Tensor stacked(const std::vector<Tensor>& parts) {
  Tensor all;
  for (const Tensor& part : parts) {
    if (!part.data()) return {};
    if (!all.data())
      all = part;
    else if (all.dtype() == part.dtype())
      all = stack_rows({all, part});
    else
      all = stack_rows({all.to(Dtype::f32), part.to(Dtype::f32)});
  }
  return all;
}

// On a GPU `whole`, on the CPU the parts.
void load_parts(WeightSource& s, bool fused, const std::string& fused_name, int64_t columns,
                const std::vector<Part>& parts, ops::Weight& whole) {
  if (fused) {
    int64_t rows = 0, begin = 0;
    for (const Part& part : parts) rows += part.rows;
    const Tensor all = s.host_matrix(fused_name, {rows, columns});
    if (s.on_gpu()) {
      whole = s.place_matrix(all, fused_name);
      return;
    }
    for (const Part& part : parts) {
      if (all.data())
        *part.weight = s.place_matrix(all.slice(begin, begin + part.rows), part.names.list.front());
      begin += part.rows;
    }
    return;
  }
  std::vector<Tensor> matrices;
  for (const Part& part : parts) {
    if (s.on_gpu())
      matrices.push_back(s.dense(part.names, {part.rows, columns}));
    else
      *part.weight = s.matrix(part.names, {part.rows, columns});
  }
  if (s.on_gpu()) whole = s.place_matrix(stacked(matrices), fused_name);
}

void load_projections(WeightSource& s, const XlstmConfig& c, const std::string& p, LayerWeights& w) {
  const int64_t D = c.hidden_size, Q = c.qk_dim, W = c.v_dim, NH = c.num_heads;
  const bool fused = c.fused_weights || s.has(p + "qkv_opreact.weight");
  load_parts(s, fused, p + "qkv_opreact.weight", D,
             {{{p + "q.weight", p + "query.weight"}, Q, &w.q},
              {{p + "k.weight", p + "key.weight"}, Q, &w.k},
              {{p + "v.weight", p + "value.weight"}, W, &w.v},
              {p + "ogate_preact.weight", W, &w.o}},
             w.qkvo);
  load_parts(s, fused, p + "ifgate_preact.weight", D,
             {{p + "igate_preact.weight", NH, &w.i}, {p + "fgate_preact.weight", NH, &w.f}}, w.gates);
  std::vector<Tensor> biases;
  if (fused) {
    biases = {s.dense(p + "ifgate_preact.bias", {2 * NH})};
    if (biases[0].data()) biases = {biases[0].slice(0, NH), biases[0].slice(NH, 2 * NH)};
  } else {
    biases = {s.dense(p + "igate_preact.bias", {NH}), s.dense(p + "fgate_preact.bias", {NH})};
  }
  if (s.on_gpu())
    w.gates_bias = s.place(stacked(biases));
  else if (biases.size() == 2)
    w.i_bias = biases[0], w.f_bias = biases[1];
}

LayerWeights load_layer(WeightSource& s, const XlstmConfig& c, int64_t layer) {
  const std::string block = concat("backbone.blocks.", layer, "."), p = block + "mlstm_layer.",
                    ffn = block + "ffn.";
  const int64_t D = c.hidden_size, U = c.intermediate_size;
  LayerWeights w;
  w.norm_mlstm = s.vector(block + "norm_mlstm.weight", {D});
  load_projections(s, c, p, w);
  w.head_norm = s.vector(p + "multihead_norm.weight", {c.v_dim});
  w.out = s.matrix(p + "out_proj.weight", {D, c.v_dim});
  w.norm_ffn = s.vector(block + "norm_ffn.weight", {D});
  load_parts(s, c.fused_weights || s.has(ffn + "proj_up_gate_z.weight"), ffn + "proj_up_gate_z.weight", D,
             {{ffn + "proj_up_gate.weight", U, &w.up_gate}, {ffn + "proj_up.weight", U, &w.up}}, w.ups);
  w.down = s.matrix(ffn + "proj_down.weight", {D, U});
  return w;
}

}  // namespace

XlstmWeights load_weights(const std::shared_ptr<const io::TensorArchive>& archive, const std::string& path,
                          const XlstmConfig& c, const LoadOptions& options) {
  WeightSource s(*archive, path, options);
  const Shape table{c.vocab_size, c.hidden_size};
  XlstmWeights w;
  if (!s.on_gpu()) w.archive = archive;
  w.embedding = s.place(
      s.host_matrix({"backbone.embeddings.weight", "backbone.embedding.weight", "embedding.weight"}, table));
  for (int64_t l = 0; l < c.num_layers; ++l) w.layers.push_back(load_layer(s, c, l));
  w.out_norm = s.vector("backbone.out_norm.weight", {c.hidden_size});
  if (!c.tie_word_embeddings || s.has("lm_head.weight"))
    w.lm_head = s.matrix("lm_head.weight", table);
  else if (w.embedding.data())
    w.lm_head = ops::Weight::dense(w.embedding, "lm_head.weight");
  s.finish(WeightSource::Unused::is_refused);
  if (s.on_gpu()) archive->check_readable();  // else zeros were uploaded where the file is gone
  archive->check_unchanged();
  return w;
}

}  // namespace trivium::xlstm
