// trivium._core.LutLayer and the tensors a layer saves between forward and backward (trivium/lut).
#include "ops/lut.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <mutex>

#include "bindings.h"

namespace trivium::python {
namespace {

using Optional = std::optional<ArrayLike>;
using Outputs = std::vector<OutputArray>;
using Release = py::call_guard<py::gil_scoped_release>;

template <class Array>
Tensor or_absent(const std::optional<Array>& a) {
  return a ? a->tensor : Tensor();
}

// What a forward writes, in the order of LutLayer.forward's `out`.
lut::Forward to_be_written(const std::optional<Outputs>& out) {
  lut::Forward f;
  if (!out) return f;
  Tensor* places[] = {&f.y,
                      &f.saved.index,
                      &f.saved.min_delta,
                      &f.saved.min_index,
                      &f.saved.pe_index,
                      &f.saved.pe_min_delta,
                      &f.saved.pe_min_index};
  TRIVIUM_CHECK(out->size() == 1 || out->size() == 4 || out->size() == 7, "lut forward: out has ",
                out->size(), " arrays, expected 1 (y), 4 or 7");
  for (size_t i = 0; i < out->size(); ++i) *places[i] = (*out)[i].tensor;
  return f;
}

// A layer with the streams its calls run on; calls from several threads take turns.
class PyLutLayer {
 public:
  PyLutLayer(lut::LayerOptions options, const std::string& device)
      : layer_(std::move(options), parse_device(device)), work_(layer_.device()) {}

  const lut::Layer& layer() const { return layer_; }
  lut::Forward forward(const Tensor& w, const Tensor& x, const Tensor& pe, bool training, bool staged,
                       const lut::Forward& into) {
    const std::lock_guard lock(mutex_);
    return lut::forward(layer_, w, x, pe, training, work_, staged, into);
  }
  Tensor fill_outputs(const Tensor& w, const Tensor& index) {
    const std::lock_guard lock(mutex_);
    return lut::fill_outputs(layer_, w, index, work_);
  }
  lut::Gradients backward(const Tensor& w, const Tensor& gy, const lut::Saved& saved,
                          const lut::BackwardOptions& options, bool staged) {
    const std::lock_guard lock(mutex_);
    return lut::backward(layer_, w, gy, saved, options, work_, staged);
  }
  Tensor decode(const Tensor& w, const Tensor& x, const Tensor& pe, const Tensor& slots,
                const Tensor& positions, lut::DecodeCache& cache) {
    const std::lock_guard lock(mutex_);
    return lut::decode(layer_, w, x, pe, slots, positions, cache, work_);
  }

 private:
  lut::Layer layer_;
  lut::Workspace work_;
  std::mutex mutex_;
};

std::shared_ptr<PyLutLayer> make_layer(int64_t inputs, int64_t outputs, const ArrayLike& anchors,
                                       const std::string& mode, int64_t sequence_length,
                                       int64_t positional_dim, bool unified_pe, float cmp_eps,
                                       float learning_rate, double int_rescaler, int64_t group_size,
                                       const Optional& pointers, const Optional& targets,
                                       const Optional& rates, const std::string& device) {
  return std::make_shared<PyLutLayer>(lut::LayerOptions{.inputs = inputs,
                                                        .outputs = outputs,
                                                        .mode = lut::parse_mode(mode),
                                                        .anchors = anchors.tensor,
                                                        .sequence_length = sequence_length,
                                                        .positional_dim = positional_dim,
                                                        .unified_pe = unified_pe,
                                                        .cmp_eps = cmp_eps,
                                                        .learning_rate = learning_rate,
                                                        .int_rescaler = int_rescaler,
                                                        .group_size = group_size,
                                                        .pointers = or_absent(pointers),
                                                        .targets = or_absent(targets),
                                                        .rates = or_absent(rates)},
                                      device);
}

lut::WeightPolicy parse_policy(const std::string& name) {
  if (name == "none") return lut::WeightPolicy::none;
  if (name == "dense") return lut::WeightPolicy::dense;
  if (name == "rows") return lut::WeightPolicy::rows;
  if (name == "internal") return lut::WeightPolicy::internal;
  throw InvalidArgument(
      concat("lut backward: policy is \"", printable(name), "\", expected none, dense, rows or internal"));
}

py::tuple to_tuple(const Shape& shape) {
  py::tuple out(static_cast<size_t>(shape.rank()));
  for (int i = 0; i < shape.rank(); ++i) out[static_cast<size_t>(i)] = py::int_(shape[i]);
  return out;
}

std::shared_ptr<lut::Saved> make_saved(const ArrayLike& index, const ArrayLike& min_delta,
                                       const ArrayLike& min_index, const ArrayLike& pe_index,
                                       const ArrayLike& pe_min_delta, const ArrayLike& pe_min_index,
                                       int64_t batch, int64_t length, const Optional& x, const Optional& pe,
                                       bool unchanged) {
  return std::make_shared<lut::Saved>(lut::Saved{.index = index.tensor,
                                                 .min_delta = min_delta.tensor,
                                                 .min_index = min_index.tensor,
                                                 .pe_index = pe_index.tensor,
                                                 .pe_min_delta = pe_min_delta.tensor,
                                                 .pe_min_index = pe_min_index.tensor,
                                                 .x = or_absent(x),
                                                 .pe = or_absent(pe),
                                                 .batch = batch,
                                                 .length = length,
                                                 .unchanged = unchanged});
}

// A field of a result; [0] where there is nothing.
template <class Owner>
auto tensor_of(Tensor Owner::*field, Dtype dtype) {
  return [=](const Owner& owner) {
    const Tensor& t = owner.*field;
    return t.numel() == 0 && t.rank() == 0 ? Tensor::empty({0}, dtype) : t;
  };
}

void register_saved(py::module_& m) {
  py::class_<lut::Saved, std::shared_ptr<lut::Saved>>(m, "LutSaved", "What a backward needs of its forward.")
      .def(py::init(&make_saved), py::arg("index"), py::arg("min_delta"), py::arg("min_index"),
           py::arg("pe_index"), py::arg("pe_min_delta"), py::arg("pe_min_index"), py::arg("batch"),
           py::arg("length"), py::kw_only(), py::arg("x") = py::none(), py::arg("pe") = py::none(),
           py::arg("unchanged") = false,
           "Of the tensors of an earlier one; product modes need x and pe alone. unchanged: their values are "
           "the forward's, and a device is not waited for to check them.")
      .def_readwrite("unchanged", &lut::Saved::unchanged,
                     "Whether the values are the forward's; clear it after writing to them.")
      .def_property_readonly("index", tensor_of(&lut::Saved::index, Dtype::i32),
                             "int32 [batch, (length,) tables]")
      .def_property_readonly("min_delta", tensor_of(&lut::Saved::min_delta, Dtype::f32),
                             "float32, like index; empty after an evaluation")
      .def_property_readonly("min_index", tensor_of(&lut::Saved::min_index, Dtype::i32),
                             "int32, like index; -1: no usable pair")
      .def_property_readonly("pe_index", tensor_of(&lut::Saved::pe_index, Dtype::i32),
                             "int32 [length - 1, tables]")
      .def_property_readonly("pe_min_delta", tensor_of(&lut::Saved::pe_min_delta, Dtype::f32),
                             "float32, like pe_index")
      .def_property_readonly("pe_min_index", tensor_of(&lut::Saved::pe_min_index, Dtype::i32),
                             "int32, like pe_index");
  py::class_<lut::Gradients>(m, "LutGradients",
                             "Results of LutLayer.backward; what was not asked for is empty.")
      .def_property_readonly("gx", tensor_of(&lut::Gradients::gx, Dtype::f32), "float32, like x")
      .def_property_readonly("gpe", tensor_of(&lut::Gradients::gpe, Dtype::f32), "float32, like pe")
      .def_property_readonly("gw", tensor_of(&lut::Gradients::gw, Dtype::f32),
                             "float32, like the weights, or the listed rows' weights")
      .def_property_readonly("rows", tensor_of(&lut::Gradients::rows, Dtype::i64),
                             "int64 [rows]: table * cells + cell, ascending");
  py::class_<lut::DecodeCache>(m, "LutCache", "Indices of the last positions of several sequences.")
      .def_property_readonly(
          "index",
          [](const lut::DecodeCache& c) {
            const Tensor host = c.index.to(Device{}), copy = Tensor::empty(host.shape(), Dtype::i32);
            std::copy_n(host.data_as<int32_t>(), host.numel(), copy.data_as<int32_t>());
            return copy;
          },
          "int32 [slots, ring, tables], a copy on the CPU");
}

void register_calls(py::class_<PyLutLayer, std::shared_ptr<PyLutLayer>>& c) {
  c.def(
      "forward",
      [](PyLutLayer& l, const ArrayLike& weights, const ArrayLike& x, const Optional& pe, bool training,
         bool staged, const std::optional<Outputs>& out) {
        lut::Forward f =
            l.forward(weights.tensor, x.tensor, or_absent(pe), training, staged, to_be_written(out));
        return std::pair{std::move(f.y), std::make_shared<lut::Saved>(std::move(f.saved))};
      },
      py::arg("weights"), py::arg("x"), py::arg("pe") = py::none(), py::kw_only(), py::arg("training") = true,
      py::arg("staged") = false, py::arg("out") = py::none(), Release(),
      "(y, saved) of x float32 [batch, (length,) inputs]. out: where to write [y] or, in training, "
      "[y, index, min_delta, min_index] or those and [pe_index, pe_min_delta, pe_min_index].");
  c.def(
      "fill_outputs",
      [](PyLutLayer& l, const ArrayLike& weights, const ArrayLike& index) {
        return l.fill_outputs(weights.tensor, index.tensor);
      },
      py::arg("weights"), py::arg("index"), Release(), "Outputs for given indices int32 [batch, tables].");
  c.def(
      "backward",
      [](PyLutLayer& l, const ArrayLike& weights, const ArrayLike& gy, const lut::Saved& saved,
         const std::string& policy, bool normalized, float eta, bool need_x,
         const std::optional<OutputArray>& gw, const std::optional<OutputArray>& gx,
         const std::optional<OutputArray>& gpe, bool staged) {
        return l.backward(weights.tensor, gy.tensor, saved,
                          {.policy = parse_policy(policy),
                           .normalized = normalized,
                           .eta = eta,
                           .need_x = need_x,
                           .gw = or_absent(gw),
                           .gx = or_absent(gx),
                           .gpe = or_absent(gpe)},
                          staged);
      },
      py::arg("weights"), py::arg("gy"), py::arg("saved"), py::kw_only(), py::arg("policy") = "dense",
      py::arg("normalized") = false, py::arg("eta") = 0.0f, py::arg("need_x") = true,
      py::arg("gw") = py::none(), py::arg("gx") = py::none(), py::arg("gpe") = py::none(),
      py::arg("staged") = false, Release(),
      "Gradients for gy, shaped like y. policy: none, dense, rows, or internal (weights -= eta * gradient, "
      "after the input gradient was taken). gw (dense), gx, gpe: where to write them.");
}

void register_decode(py::class_<PyLutLayer, std::shared_ptr<PyLutLayer>>& c) {
  c.def(
      "make_cache",
      [](PyLutLayer& l, int64_t slots, int64_t max_step_rows) {
        return lut::make_cache(l.layer(), slots, max_step_rows);
      },
      py::arg("slots"), py::arg("max_step_rows") = 1, "A cache for decode().");
  c.def(
      "decode",
      [](PyLutLayer& l, const ArrayLike& weights, const ArrayLike& x, const Optional& pe,
         const ArrayLike& slots, const ArrayLike& positions, lut::DecodeCache& cache) {
        return l.decode(weights.tensor, x.tensor, or_absent(pe), slots.tensor, positions.tensor, cache);
      },
      py::arg("weights"), py::arg("x"), py::arg("pe"), py::arg("slots"), py::arg("positions"),
      py::arg("cache"), Release(),
      "Outputs of new positions x [rows, inputs]: row r is positions[r] of slots[r] (int32) and attends to "
      "the "
      "sequence_length - 1 positions before it.");
}

}  // namespace

void register_lut(py::module_& m) {
  register_saved(m);
  py::class_<PyLutLayer, std::shared_ptr<PyLutLayer>> c(
      m, "LutLayer", "The structure of a LUT layer; weights belong to the caller. See trivium.lut.");
  c.def(py::init(&make_layer), py::arg("inputs"), py::arg("outputs"), py::arg("anchors"), py::kw_only(),
        py::arg("mode") = "rows", py::arg("sequence_length") = 1, py::arg("positional_dim") = 0,
        py::arg("unified_pe") = false, py::arg("cmp_eps") = 0.0f, py::arg("learning_rate") = 1.0f,
        py::arg("int_rescaler") = 0.0, py::arg("group_size") = 32, py::arg("pointers") = py::none(),
        py::arg("targets") = py::none(), py::arg("rates") = py::none(), py::arg("device") = "cpu",
        "anchors int32 [tables, pairs, 2] (negative: unused pair). mode: rows, sequence, product or sliced. "
        "pointers int64 and targets int32 make it sparse. int_rescaler > 0: fixed point.")
      .def_property_readonly(
          "weight_shape", [](const PyLutLayer& l) { return to_tuple(l.layer().weight_shape()); },
          "[tables, cells, outputs], sparse [synapses]")
      .def_property_readonly(
          "pe_shape", [](const PyLutLayer& l) { return to_tuple(l.layer().pe_shape()); },
          "[sequence_length - 1, tables, positional_dim], unified without tables")
      .def_property_readonly("cells", [](const PyLutLayer& l) { return l.layer().cells(); })
      .def_property_readonly("device", [](const PyLutLayer& l) { return to_string(l.layer().device()); });
  register_calls(c);
  register_decode(c);
}

}  // namespace trivium::python
