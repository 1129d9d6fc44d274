// Tensors over arrays of other libraries, and the names of element types.
#include <cstring>
#include <vector>

#include "bindings.h"
#include "core/registry.h"
#include "dlpack.h"

namespace trivium::python {
namespace {

// numpy cannot hand out ml_dtypes.bfloat16 through DLPack or the buffer protocol, but its bits as uint16.
bool is_numpy_bfloat16(const py::handle& value) {
  return py::hasattr(value, "dtype") && py::hasattr(value, "view") &&
         py::str(value.attr("dtype")).cast<std::string>() == "bfloat16" &&
         py::hasattr(value, "__array_interface__");
}

Tensor from_dlpack_producer(const py::handle& value) {
  const py::object method = value.attr("__dlpack__");
  dlpack::DeviceId id{dlpack::kCpu, 0};
  if (py::hasattr(value, "__dlpack_device__")) {
    const auto [type, index] = value.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
    id = {type, index};
  }
  const py::object stream = dlpack::import_stream(id);
  py::object capsule;
  try {
    capsule = method(py::arg("stream") = stream,
                     py::arg("max_version") = py::make_tuple(dlpack::kMajor, dlpack::kMinor));
  } catch (const py::error_already_set& e) {
    if (!e.matches(PyExc_TypeError)) throw;
    capsule = method(py::arg("stream") = stream);  // producers from before DLPack 1.0 know no max_version
  }
  dlpack::finish_import(id);
  return dlpack::from_capsule(capsule);
}

Dtype dtype_from_format(const char* format, int64_t item_size) {
  const char* code = format ? format : "B";
  if (std::strchr("@=<", *code) && *code) ++code;  // the supported machines are little-endian
  if (std::strlen(code) == 1) {
    switch (*code) {
      case 'f':
        return Dtype::f32;
      case 'd':
        return Dtype::f64;
      case 'e':
        return Dtype::f16;
      case '?':
        return Dtype::boolean;
      case 'B':
      case 'c':
        return Dtype::u8;
      case 'b':
        return Dtype::i8;
      case 'H':
        return Dtype::u16;
      case 'h':
        return Dtype::i16;
      case 'I':
      case 'L':
        if (item_size == 4) return Dtype::u32;
        break;
      case 'i':
      case 'l':
      case 'q':
        return item_size == 4 ? Dtype::i32 : Dtype::i64;
      default:
        break;
    }
  }
  throw py::buffer_error(concat("buffer format \"", printable(format ? format : ""), "\" is not supported"));
}

Tensor from_buffer(const py::handle& value) {
  auto view = std::shared_ptr<Py_buffer>(new Py_buffer{}, [](Py_buffer* b) {
    if (b->obj && interpreter_alive()) {
      const py::gil_scoped_acquire gil;
      PyBuffer_Release(b);
    }
    delete b;
  });
  if (PyObject_GetBuffer(value.ptr(), view.get(), PyBUF_FORMAT | PyBUF_STRIDES) != 0)
    throw py::error_already_set();
  const Dtype dtype = dtype_from_format(view->format, view->itemsize);
  std::vector<int64_t> strides;
  for (int i = 0; view->strides && i < view->ndim; ++i) {  // ctypes leaves them out for contiguous arrays
    if (view->strides[i] % view->itemsize != 0)
      throw py::buffer_error("buffer strides are not multiples of the element");
    strides.push_back(view->strides[i] / view->itemsize);
  }
  if (reinterpret_cast<uintptr_t>(view->buf) % static_cast<uintptr_t>(view->itemsize) != 0)
    throw py::buffer_error("buffer is not aligned to its elements");
  const Shape shape(std::span<const int64_t>(reinterpret_cast<const int64_t*>(view->shape),
                                             static_cast<size_t>(view->ndim)));
  return Tensor::wrap(view->buf, shape, dtype, {}, view, strides, view->readonly != 0);
}

// In C order and the machine's byte order.
py::object numpy_copy(const py::handle& value) {
  const py::object array = py::module_::import("numpy").attr("array")(value, py::arg("order") = "C");
  return array.attr("astype")(array.attr("dtype").attr("newbyteorder")("="), py::arg("copy") = false);
}

// Without copying elements; BufferError when the array cannot be represented.
Tensor share(const py::handle& value) {
  if (is_numpy_bfloat16(value)) return retyped(share(value.attr("view")("uint16")), Dtype::bf16);
  if (!py::hasattr(value, "__dlpack__")) return from_buffer(value);
  try {
    return from_dlpack_producer(value);
  } catch (const py::error_already_set& e) {
    // numpy before 2.1 cannot mark read-only arrays in DLPack; the buffer protocol can.
    if (!e.matches(PyExc_BufferError) || !PyObject_CheckBuffer(value.ptr())) throw;
  }
  return from_buffer(value);
}

bool holds_numbers(const py::object& array) {
  return std::strchr("biufV", array.attr("dtype").attr("kind").cast<std::string>()[0]) != nullptr;
}

bool has_array_protocol(const py::handle& value) {
  return py::hasattr(value, "__dlpack__") || PyObject_CheckBuffer(value.ptr());
}

}  // namespace

Dtype dtype_from_python(const py::handle& value) {
  std::string name;
  if (py::isinstance<py::str>(value)) {
    name = value.cast<std::string>();
  } else if (py::isinstance<py::type>(value)) {
    name = py::module_::import("numpy").attr("dtype")(value).attr("name").cast<std::string>();
  } else {
    name = py::hasattr(value, "name") ? value.attr("name").cast<std::string>()
                                      : py::str(value).cast<std::string>();
  }
  if (const auto dot = name.rfind('.'); dot != std::string::npos) name.erase(0, dot + 1);  // "torch.float32"
  return parse_dtype(name);
}

Tensor tensor_from_python(const py::handle& value, std::optional<bool> copy) {
  if (py::isinstance<Tensor>(value)) {
    const auto& tensor = value.cast<const Tensor&>();
    return copy.value_or(false) ? deep_copy(tensor) : tensor;
  }
  if (!has_array_protocol(value)) {  // numbers and lists
    if (copy.has_value() && !*copy)
      throw py::buffer_error(
          concat("copy=False: ", Py_TYPE(value.ptr())->tp_name, " has neither __dlpack__ nor a buffer"));
    const py::object array = numpy_copy(value);
    if (!holds_numbers(array))
      throw py::type_error(concat("expected an array, a number or a list of numbers, not ",
                                  Py_TYPE(value.ptr())->tp_name, " (numpy makes it ",
                                  printable(py::str(array.attr("dtype")).cast<std::string>()), ")"));
    return share(array);
  }
  if (copy.value_or(false)) return deep_copy(tensor_from_python(value));
  if (copy.has_value()) return share(value);
  // A copy helps where only the layout stood in the way; what says why it does not is the first error.
  try {
    return share(value);
  } catch (const py::buffer_error&) {
    const py::object array = numpy_copy(value);
    if (!holds_numbers(array)) throw;
    return share(array);
  } catch (const py::error_already_set& e) {
    if (!e.matches(PyExc_BufferError)) throw;
    const py::object array = numpy_copy(value);
    if (!holds_numbers(array)) throw;
    return share(array);
  }
}

Tensor retyped(const Tensor& t, Dtype dtype) {
  return Tensor::wrap(t.data(), t.shape(), dtype, t.device(), t.owner(), t.strides(), t.read_only());
}

Tensor deep_copy(const Tensor& tensor) {
  const py::gil_scoped_release release;
  if (!tensor.is_contiguous()) return tensor.contiguous();
  const Tensor out = Tensor::empty(tensor.shape(), tensor.dtype(), tensor.device());
  const Device device = tensor.device();
  StreamHandle* stream = is_gpu(device.kind) ? default_stream(device) : nullptr;
  if (const Status s = runtime(device).copy(device.index, stream, out.data(), tensor.data(), tensor.nbytes());
      s != Status::ok)
    throw_status(device.kind, s);
  if (stream) synchronize(device, stream);
  return out;
}

}  // namespace trivium::python
