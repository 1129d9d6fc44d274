// trivium._core.mlstm_*: the mLSTM on anything tensor_from_python accepts. Argument names are those of the
// published kernels; python/trivium/mlstm.py gives them their public names.
#include "ops/mlstm.h"

#include <pybind11/stl.h>

#include "bindings.h"

namespace trivium::python {

// An array of any strides but a contiguous last dimension; others are copied.
struct HeadArray {
  Tensor tensor;
};

}  // namespace trivium::python

namespace pybind11::detail {

template <>
struct type_caster<trivium::python::HeadArray> {
  PYBIND11_TYPE_CASTER(trivium::python::HeadArray, const_name("typing.Any"));
  bool load(handle source, bool) {
    trivium::Tensor t = trivium::python::tensor_from_python(source);
    if (t.rank() > 0 && t.strides()[static_cast<size_t>(t.rank()) - 1] != 1 && t.dim(-1) != 1)
      t = trivium::python::deep_copy(t);
    value.tensor = std::move(t);
    return true;
  }
};

}  // namespace pybind11::detail

namespace trivium::python {
namespace {

using Optional = std::optional<ArrayLike>;
using Release = py::call_guard<py::gil_scoped_release>;

Tensor or_absent(const Optional& a) { return a ? a->tensor : Tensor(); }
std::optional<Tensor> or_none(const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; }

// scaM [B, NH], also as [B, NH, 1].
Tensor without_last_one(const Tensor& t) {
  return t.rank() == 3 && t.dim(2) == 1 ? t.reshape({t.dim(0), t.dim(1)}) : t;
}
Tensor without_last_one(const Optional& a) { return without_last_one(or_absent(a)); }

// [B, NH, D] as [B, NH, 1, D] and [B, NH] as [B, NH, 1]: one token.
Tensor as_token(const Tensor& t, int rank, const char* name) {
  TRIVIUM_CHECK(t.rank() == rank, "mlstm.recurrent_step: ", name, " is ", t.shape(), ", expected ",
                rank == 3 ? "[B, NH, DH]" : "[B, NH]");
  const Tensor whole = t.contiguous();
  return rank == 3 ? whole.reshape({t.dim(0), t.dim(1), 1, t.dim(2)})
                   : whole.reshape({t.dim(0), t.dim(1), 1});
}

// What a call writes to must be the caller's own memory. None: not given.
Tensor in_place(const py::handle& value, const char* op, const char* name) try {
  if (value.is_none()) return {};
  const Tensor t = tensor_from_python(value, false);
  TRIVIUM_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous, but it is updated in place");
  return t;
} catch (const py::buffer_error& e) {
  throw InvalidArgument(
      concat(op, ": ", name, " is updated in place, but its memory cannot be had (", e.what(), ")"));
}

struct Options {
  std::optional<double> qk_scale;
  int64_t chunk_size;
  double eps, m_floor;
  bool sigmoid_input_gate, normalize, strict_chunks, check_finite;
  ops::MlstmSettings settings() const {
    return {.qk_scale = qk_scale,
            .eps = eps,
            .chunk_size = chunk_size,
            .m_floor = m_floor,
            .sigmoid_input_gate = sigmoid_input_gate,
            .normalize = normalize,
            .strict_chunks = strict_chunks,
            .check_finite = check_finite};
  }
};

void register_passes(py::module_& module) {
  module.def(
      "mlstm_chunkwise_fw",
      [](const HeadArray& q, const HeadArray& k, const HeadArray& v, const ArrayLike& i, const ArrayLike& f,
         const Optional& c0, const Optional& n0, const Optional& m0, const Options& options, bool last,
         bool states) {
        auto out = ops::mlstm_chunkwise_fw({q.tensor, k.tensor, v.tensor, i.tensor, f.tensor},
                                           {or_absent(c0), or_absent(n0), without_last_one(m0)},
                                           options.settings(), last, states);
        return std::tuple{out.h,
                          out.n_out,
                          out.nt,
                          out.m_out,
                          or_none(out.last.c),
                          or_none(out.last.n),
                          or_none(out.last.m),
                          or_none(out.states.c),
                          or_none(out.states.n),
                          or_none(out.states.m)};
      },
      py::arg("matQ"), py::arg("matK"), py::arg("matV"), py::arg("vecI"), py::arg("vecF"),
      py::arg("matC_initial"), py::arg("vecN_initial"), py::arg("scaM_initial"), py::arg("options"),
      py::arg("return_last_states"), py::arg("return_all_states"), Release());
  module.def(
      "mlstm_chunkwise_bw",
      [](const HeadArray& q, const HeadArray& k, const HeadArray& v, const ArrayLike& i, const ArrayLike& f,
         const Optional& c0, const Optional& n0, const Optional& m0, const Optional& c_states,
         const Optional& n_states, const Optional& m_states, const ArrayLike& n_out, const ArrayLike& m_out,
         const Optional& nt, const HeadArray& dh, const Optional& dc, const Optional& dn,
         const Options& options, const std::string& grad_mode) {
        auto out = ops::mlstm_chunkwise_bw({q.tensor, k.tensor, v.tensor, i.tensor, f.tensor},
                                           {or_absent(c0), or_absent(n0), without_last_one(m0)},
                                           {n_out.tensor,
                                            m_out.tensor,
                                            or_absent(nt),
                                            dh.tensor,
                                            or_absent(dc),
                                            or_absent(dn),
                                            {or_absent(c_states), or_absent(n_states), or_absent(m_states)}},
                                           options.settings(), ops::parse_mlstm_grad_mode(grad_mode));
        return std::tuple{out.dq,
                          out.dk,
                          out.dv,
                          out.di,
                          out.df,
                          or_none(out.initial.c),
                          or_none(out.initial.n),
                          or_none(out.initial.m)};
      },
      py::arg("matQ"), py::arg("matK"), py::arg("matV"), py::arg("vecI"), py::arg("vecF"),
      py::arg("matC_initial"), py::arg("vecN_initial"), py::arg("scaM_initial"), py::arg("matC_states"),
      py::arg("vecN_states"), py::arg("scaM_states"), py::arg("vecN_out"), py::arg("vecM_out"),
      py::arg("vecNt"), py::arg("matDeltaH"), py::arg("matDeltaC_last"), py::arg("vecDeltaN_last"),
      py::arg("options"), py::arg("grad_mode"), Release());
  module.def(
      "mlstm_recurrent",
      [](const HeadArray& q, const HeadArray& k, const HeadArray& v, const ArrayLike& i, const ArrayLike& f,
         const py::object& c, const py::object& n, const py::object& m, const Options& options,
         bool one_token) {
        constexpr const char* kOp = "mlstm.recurrent";
        ops::MlstmState state{in_place(c, kOp, "matC"), in_place(n, kOp, "vecN"),
                              without_last_one(in_place(m, kOp, "scaM"))};
        const py::gil_scoped_release release;
        ops::MlstmInputs x{q.tensor, k.tensor, v.tensor, i.tensor, f.tensor};
        if (one_token)
          x = {as_token(x.q, 3, "matQ"), as_token(x.k, 3, "matK"), as_token(x.v, 3, "matV"),
               as_token(x.i, 2, "vecI"), as_token(x.f, 2, "vecF")};
        auto out = ops::mlstm_recurrent(x, state, options.settings());
        if (one_token) out.h = out.h.reshape({out.h.dim(0), out.h.dim(1), out.h.dim(3)});
        return std::tuple{out.h, out.n_out, out.m_out};
      },
      py::arg("matQ"), py::arg("matK"), py::arg("matV"), py::arg("vecI"), py::arg("vecF"), py::arg("matC"),
      py::arg("vecN"), py::arg("scaM"), py::arg("options"), py::arg("one_token"));
}

void register_parts(py::module_& module) {
  module.def(
      "mlstm_recurrent_fw_C",
      [](const HeadArray& k, const HeadArray& v, const ArrayLike& b, const ArrayLike& i, const Optional& c0,
         const Optional& n0, const Optional& m0, const py::object& c, const py::object& n,
         const py::object& m, const Options& options) {
        constexpr const char* kOp = "mlstm.recurrent_fw_C";
        const ops::MlstmState buffers{in_place(c, kOp, "matC_states"), in_place(n, kOp, "vecN_states"),
                                      in_place(m, kOp, "scaMinter_states")};
        const py::gil_scoped_release release;
        auto out = ops::mlstm_recurrent_fw_c(k.tensor, v.tensor, b.tensor, i.tensor,
                                             {or_absent(c0), or_absent(n0), without_last_one(m0)}, buffers,
                                             options.settings());
        return std::tuple{out.c, out.n, out.m};
      },
      py::arg("matK"), py::arg("matV"), py::arg("vecB"), py::arg("vecI"), py::arg("matC_initial"),
      py::arg("vecN_initial"), py::arg("scaMinter_initial"), py::arg("matC_states"), py::arg("vecN_states"),
      py::arg("scaMinter_states"), py::arg("options"));
  module.def(
      "mlstm_parallel_fw_H",
      [](const HeadArray& q, const HeadArray& k, const HeadArray& v, const ArrayLike& c, const ArrayLike& n,
         const ArrayLike& m, const ArrayLike& i, const ArrayLike& b, const Options& options) {
        auto out = ops::mlstm_parallel_fw_h(q.tensor, k.tensor, v.tensor, {c.tensor, n.tensor, m.tensor},
                                            i.tensor, b.tensor, options.settings());
        return std::tuple{out.h, out.n_out, out.m_out, out.nt};
      },
      py::arg("matQ"), py::arg("matK"), py::arg("matV"), py::arg("matC_states"), py::arg("vecN_states"),
      py::arg("scaMinter_states"), py::arg("vecI"), py::arg("vecB"), py::arg("options"), Release());
  module.def(
      "mlstm_recurrent_bw_dC",
      [](const HeadArray& q, const ArrayLike& f, const ArrayLike& m_states, const ArrayLike& m_out,
         const HeadArray& dh, const ArrayLike& n_out, const Optional& dc_last, const Optional& h,
         const Optional& nt, const Optional& dn_last, const Options& options) {
        auto out = ops::mlstm_recurrent_bw_dc(
            q.tensor, f.tensor, m_states.tensor, m_out.tensor, dh.tensor, n_out.tensor, or_absent(dc_last),
            {or_absent(h), or_absent(nt), or_absent(dn_last)}, options.settings());
        return std::tuple{out.dc, out.initial.c, out.dn, out.initial.n};
      },
      py::arg("matQ"), py::arg("vecF"), py::arg("scaM_states"), py::arg("vecM_out"), py::arg("matDeltaH"),
      py::arg("vecN_out"), py::arg("matDeltaC_last"), py::arg("matH"), py::arg("vecNt"),
      py::arg("vecDeltaN_last"), py::arg("options"), Release());
  module.def(
      "mlstm_parallel_bw_dQKV",
      [](const HeadArray& q, const HeadArray& k, const HeadArray& v, const ArrayLike& f, const ArrayLike& i,
         const ArrayLike& c, const ArrayLike& m, const HeadArray& dh, const ArrayLike& n_out,
         const ArrayLike& m_out, const ArrayLike& dc, const Optional& n, const Optional& dn,
         const Options& options) {
        auto out = ops::mlstm_parallel_bw_dqkv(
            q.tensor, k.tensor, v.tensor, f.tensor, i.tensor, {c.tensor, or_absent(n), m.tensor}, dh.tensor,
            n_out.tensor, m_out.tensor, {dc.tensor, or_absent(dn), {}}, options.settings());
        return std::tuple{out.dq, out.dk, out.dv, out.di, out.df};
      },
      py::arg("matQ"), py::arg("matK"), py::arg("matV"), py::arg("vecF"), py::arg("vecI"),
      py::arg("matC_states"), py::arg("scaM_states"), py::arg("matDeltaH"), py::arg("vecN_out"),
      py::arg("vecM_out"), py::arg("matDeltaC_states"), py::arg("vecN_states"), py::arg("vecDeltaN_states"),
      py::arg("options"), Release());
}

}  // namespace

void register_mlstm(py::module_& module) {
  py::class_<Options>(module, "MlstmOptions", "Settings the mLSTM functions share.")
      .def(py::init([](std::optional<double> qk_scale, int64_t chunk_size, double eps, double m_floor,
                       bool sigmoid_input_gate, bool normalize, bool strict_chunks, bool check_finite) {
             return Options{qk_scale,           chunk_size, eps,           m_floor,
                            sigmoid_input_gate, normalize,  strict_chunks, check_finite};
           }),
           py::kw_only(), py::arg("qk_scale") = py::none(), py::arg("chunk_size") = 64, py::arg("eps") = 1e-6,
           py::arg("m_floor") = -10.0, py::arg("sigmoid_input_gate") = false, py::arg("normalize") = true,
           py::arg("strict_chunks") = false, py::arg("check_finite") = false);
  register_passes(module);
  register_parts(module);
}

}  // namespace trivium::python
