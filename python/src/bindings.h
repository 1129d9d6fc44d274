// What the binding files share. One file per class; none holds logic beyond argument conversion.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <optional>

#include "core/tensor.h"

namespace trivium::python {

namespace py = pybind11;

void register_errors(py::module_& m);
void register_log();
void register_tensor(py::module_& m);
void register_tokenizer(py::module_& m);
void register_engine(py::module_& m);
void register_ops(py::module_& m);
void register_lut(py::module_& m);
void register_safetensors(py::module_& m);
void register_mlstm(py::module_& m);
void register_system(py::module_& m);

inline constexpr std::array kAllDtypes = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64,
                                          Dtype::i64, Dtype::i32,  Dtype::i16, Dtype::i8,
                                          Dtype::u8,  Dtype::u16,  Dtype::u32, Dtype::boolean};

inline constexpr std::array kAllKinds = {DeviceKind::cpu,   DeviceKind::cuda,  DeviceKind::hip,
                                         DeviceKind::emu32, DeviceKind::emu64, DeviceKind::test};

// False once the interpreter is shutting down: then Python objects are left alone.
bool interpreter_alive();

// "float32", np.float32, np.dtype("f4"), torch.float32, ... InvalidArgument otherwise.
Dtype dtype_from_python(const py::handle& value);

// A Tensor over any array: a Tensor itself, an object with __dlpack__, the buffer protocol, else whatever
// numpy makes of it. copy: true = always, false = never (BufferError when that is impossible), none = when
// needed.
Tensor tensor_from_python(const py::handle& value, std::optional<bool> copy = std::nullopt);

// A contiguous copy on the same device; and the same storage read as another dtype of the same size.
Tensor deep_copy(const Tensor& tensor);
Tensor retyped(const Tensor& tensor, Dtype dtype);

// Parameter type of the ops: accepts what tensor_from_python accepts; strided arrays are copied.
struct ArrayLike {
  Tensor tensor;
};

// Parameter type of arrays that are written: never a copy, BufferError where they cannot be shared.
struct OutputArray {
  Tensor tensor;
};

// Keyword `device` of the ops: arguments that lie elsewhere are copied there; None leaves them where they
// are.
struct OnDevice {
  std::optional<Device> device;
  Tensor operator()(const Tensor& t) const { return device ? t.to(*device) : t; }
  Tensor operator()(const ArrayLike& a) const { return (*this)(a.tensor); }
  Tensor operator()(const std::optional<ArrayLike>& a) const { return a ? (*this)(a->tensor) : Tensor(); }
};

}  // namespace trivium::python

namespace pybind11::detail {

template <>
struct type_caster<trivium::python::ArrayLike> {
  PYBIND11_TYPE_CASTER(trivium::python::ArrayLike, const_name("typing.Any"));
  bool load(handle source, bool) {
    value.tensor = trivium::python::tensor_from_python(source);
    if (!value.tensor.is_contiguous()) value.tensor = trivium::python::deep_copy(value.tensor);
    return true;
  }
};

template <>
struct type_caster<trivium::python::OutputArray> {
  PYBIND11_TYPE_CASTER(trivium::python::OutputArray, const_name("typing.Any"));
  bool load(handle source, bool) {
    value.tensor = trivium::python::tensor_from_python(source, false);
    return true;
  }
};

template <>
struct type_caster<trivium::python::OnDevice> {
  PYBIND11_TYPE_CASTER(trivium::python::OnDevice, const_name("str | None"));
  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!isinstance<str>(source)) return false;
    value.device = trivium::parse_device(source.cast<std::string>());
    return true;
  }
};

}  // namespace pybind11::detail
