#include "core/tensor.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings.h"
#include "dlpack.h"

namespace trivium::python {
namespace {

py::tuple to_tuple(std::span<const int64_t> values) {
  py::tuple out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = py::int_(values[i]);
  return out;
}

bool is_device_text(const py::handle& value) {
  if (!py::isinstance<py::str>(value)) return false;
  const auto text = value.cast<std::string>();
  const std::string kind = text.substr(0, text.find(':'));
  return kind == "auto" || std::any_of(kAllKinds.begin(), kAllKinds.end(),
                                       [&](DeviceKind known) { return kind == name_of(known); });
}

Tensor to_device(const Tensor& tensor, const std::string& device) {
  const py::gil_scoped_release release;
  return tensor.to(parse_device(device));
}

Tensor to_dtype(const Tensor& tensor, const py::handle& dtype) {
  const Dtype wanted = dtype_from_python(dtype);
  const py::gil_scoped_release release;
  return tensor.to(wanted);
}

Tensor to(const Tensor& tensor, const py::object& target) {
  return is_device_text(target) ? to_device(tensor, target.cast<std::string>()) : to_dtype(tensor, target);
}

Tensor make(const py::object& value, const py::object& dtype, const py::object& device,
            std::optional<bool> copy) {
  Tensor tensor = tensor_from_python(value, copy);
  const void* before = tensor.data();
  if (!dtype.is_none()) tensor = to_dtype(tensor, dtype);
  if (!device.is_none()) tensor = to_device(tensor, py::str(device).cast<std::string>());
  if (copy.has_value() && !*copy && tensor.data() != before)
    throw py::buffer_error("copy=False: the conversion to another dtype or device needs a copy");
  return tensor;
}

// A numpy array over the tensor's memory; `self` stays alive with it.
py::array numpy_view(const py::object& self) {
  const auto& t = self.cast<const Tensor&>();
  TRIVIUM_CHECK(t.device().kind == DeviceKind::cpu, "numpy: the tensor is on ", t.device(),
                "; use .to(\"cpu\") first");
  const bool bf16 = t.dtype() == Dtype::bf16;
  py::object ml_dtype;
  if (bf16) {
    try {
      ml_dtype = py::module_::import("ml_dtypes").attr("bfloat16");
    } catch (const py::error_already_set& e) {
      if (!e.matches(PyExc_ImportError)) throw;
      throw py::type_error(
          "numpy has no bfloat16: use .astype(\"float32\").numpy() or .view_u16(), or install ml_dtypes "
          "(pip install \"trivium[bf16]\")");
    }
  }
  std::vector<py::ssize_t> shape(t.shape().begin(), t.shape().end()), strides;
  for (const int64_t s : t.strides()) strides.push_back(s * size_of(t.dtype()));
  py::array array(py::dtype(bf16 ? "uint16" : name_of(t.dtype())), shape, strides, t.data(), self);
  if (t.read_only()) array.attr("setflags")(py::arg("write") = false);
  return bf16 ? py::array(array.attr("view")(ml_dtype)) : array;
}

py::array array_protocol(const py::object& self, const py::object& dtype, std::optional<bool> copy) {
  py::array array = numpy_view(self);
  const bool converts =
      !dtype.is_none() && !py::module_::import("numpy").attr("dtype")(dtype).equal(array.attr("dtype"));
  if (copy.has_value() && !*copy && converts)
    throw py::value_error("__array__: copy=False, but the conversion to another dtype needs a copy");
  if (converts) return array.attr("astype")(dtype);
  return copy.value_or(false) ? array.attr("copy")() : array;
}

py::object dlpack_protocol(const py::object& self, const py::object& stream,
                           std::optional<std::pair<int, int>> max_version,
                           std::optional<std::pair<int, int>> dl_device, std::optional<bool> copy) {
  const auto& tensor = self.cast<const Tensor&>();
  const bool versioned = max_version && max_version->first >= 1;
  const dlpack::DeviceId here = dlpack::device_of(tensor);
  const bool moves = dl_device && *dl_device != std::pair<int, int>(here.type, here.index);
  if (moves && (copy == false || dl_device->first != dlpack::kCpu))
    throw py::buffer_error(concat("__dlpack__: cannot export a tensor on ", tensor.device(),
                                  " to DLPack device (", dl_device->first, ", ", dl_device->second, ")",
                                  copy == false ? " without a copy" : ""));
  dlpack::make_consumer_wait(tensor, stream);
  if (moves) return dlpack::to_capsule(to_device(tensor, "cpu"), versioned, true);
  if (copy == true) return dlpack::to_capsule(deep_copy(tensor), versioned, true);
  return dlpack::to_capsule(tensor, versioned, false);
}

Tensor view_u16(const Tensor& tensor) {
  TRIVIUM_CHECK(size_of(tensor.dtype()) == 2, "view_u16: dtype is ", tensor.dtype(),
                ", expected one of 2 bytes");
  return retyped(tensor, Dtype::u16);
}

std::string repr(const Tensor& t) {
  return concat("trivium.Tensor(shape=", t.shape(), ", dtype=", t.dtype(), ", device=", t.device(),
                t.read_only() ? ", read-only)" : ")");
}

void define_attributes(py::class_<Tensor>& tensor) {
  tensor
      .def_property_readonly("shape",
                             [](const Tensor& t) {
                               return to_tuple({t.shape().begin(), t.shape().end()});
                             })
      .def_property_readonly(
          "strides", [](const Tensor& t) { return to_tuple(t.strides()); }, "In elements, not bytes.")
      .def_property_readonly(
          "dtype", [](const Tensor& t) { return name_of(t.dtype()); }, "Name: \"float32\", ...")
      .def_property_readonly(
          "device", [](const Tensor& t) { return to_string(t.device()); }, "\"cpu\", \"cuda:0\", ...")
      .def_property_readonly("ndim", &Tensor::rank)
      .def_property_readonly("size", &Tensor::numel, "Number of elements.")
      .def_property_readonly("nbytes", &Tensor::nbytes)
      .def_property_readonly("read_only", &Tensor::read_only)
      .def_property_readonly("is_contiguous", &Tensor::is_contiguous)
      .def("__repr__", repr)
      .def("__len__", [](const Tensor& t) {
        if (t.rank() == 0) throw py::type_error("len() of a tensor without dimensions");
        return t.dim(0);
      });
}

void define_conversions(py::class_<Tensor>& tensor) {
  tensor
      .def("to", to, py::arg("target"),
           "On another device (\"cuda:0\") or with another dtype (\"bfloat16\").")
      .def("astype", to_dtype, py::arg("dtype"),
           "With another floating-point dtype; itself when it already is.")
      .def("contiguous", &Tensor::contiguous, py::call_guard<py::gil_scoped_release>())
      .def("numpy", numpy_view, "numpy array over the same memory; bfloat16 needs ml_dtypes.")
      .def("view_u16", view_u16, "The bits of a 2-byte dtype as uint16, over the same memory.")
      .def("__array__", array_protocol, py::arg("dtype") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack__", dlpack_protocol, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none(),
           "DLPack capsule over the same memory (a copy only when asked for or moved).")
      .def("__dlpack_device__", [](const Tensor& t) {
        const dlpack::DeviceId id = dlpack::device_of(t);
        return py::make_tuple(id.type, id.index);
      });
}

}  // namespace

void register_tensor(py::module_& m) {
  py::class_<Tensor> tensor(
      m, "Tensor",
      "Array on a device. Built over any object with __dlpack__ or the buffer protocol, whose memory "
      "it shares and keeps alive; copy=True copies, copy=False never does.");
  tensor.def(py::init(&make), py::arg("value"), py::kw_only(), py::arg("dtype") = py::none(),
             py::arg("device") = py::none(), py::arg("copy") = py::none());
  define_attributes(tensor);
  define_conversions(tensor);
  py::class_<dlpack::ForeignStream>(
      m, "ForeignStream",
      "Inside, our work on imported arrays of a device follows what the other library's stream was given "
      "before, and what it is given afterwards follows ours, without the host. The arrays are used on that "
      "stream only, which outlives them.")
      .def(py::init([](std::pair<int32_t, int32_t> device, uintptr_t native) {
             return dlpack::ForeignStream({device.first, device.second}, native);
           }),
           py::arg("device"), py::arg("native"),
           "device: as __dlpack_device__() gives it. native: the vendor's handle as a number.")
      .def("__enter__", &dlpack::ForeignStream::enter)
      .def("__exit__", [](dlpack::ForeignStream& s, const py::args&) { s.exit(); });
  m.def("from_dlpack", make, py::arg("value"), py::kw_only(), py::arg("dtype") = py::none(),
        py::arg("device") = py::none(), py::arg("copy") = py::none(), "The same as Tensor(value, ...).");
}

}  // namespace trivium::python
