// One Python exception per C++ error type; each is also the built-in exception a caller would try first.
#include "core/error.h"

#include <system_error>

#include "bindings.h"

namespace trivium::python {
namespace {

// Created once and never freed: translators may run while the interpreter shuts down.
struct ExceptionTypes {
  PyObject *error, *invalid_argument, *model_format, *device, *out_of_memory, *cancelled, *unsupported, *io;
};

ExceptionTypes g_types;

PyObject* add_exception(py::module_& m, const char* name, const char* doc, PyObject* base,
                        PyObject* builtin) {
  py::list bases;
  bases.append(py::handle(base));
  if (builtin) bases.append(py::handle(builtin));
  PyObject* type =
      PyErr_NewExceptionWithDoc(concat("trivium.", name).c_str(), doc, py::tuple(bases).ptr(), nullptr);
  if (!type) throw py::error_already_set();
  m.add_object(name, type);
  return type;
}

void translate(std::exception_ptr p) {
  try {
    if (p) std::rethrow_exception(p);
  } catch (const InvalidArgument& e) {
    PyErr_SetString(g_types.invalid_argument, e.what());
  } catch (const ModelFormatError& e) {
    PyErr_SetString(g_types.model_format, e.what());
  } catch (const DeviceError& e) {
    PyErr_SetString(g_types.device, e.what());
  } catch (const OutOfMemory& e) {
    PyErr_SetString(g_types.out_of_memory, e.what());
  } catch (const Cancelled& e) {
    PyErr_SetString(g_types.cancelled, e.what());
  } catch (const NotImplemented& e) {
    PyErr_SetString(g_types.unsupported, e.what());
  } catch (const IoError& e) {
    PyErr_SetString(g_types.io, e.what());
  } catch (const Error& e) {
    PyErr_SetString(g_types.error, e.what());
  } catch (const std::bad_alloc&) {
    PyErr_SetString(g_types.out_of_memory, "out of memory");
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) throw;
    PyErr_SetString(g_types.out_of_memory, "no memory, or no permission, for another thread");
  }
}

}  // namespace

void register_errors(py::module_& m) {
  PyObject* error =
      add_exception(m, "Error", "Base of all errors of this package.", PyExc_RuntimeError, nullptr);
  g_types = {
      .error = error,
      .invalid_argument = add_exception(m, "InvalidArgument", "A shape, dtype, range or option is wrong.",
                                        error, PyExc_ValueError),
      .model_format = add_exception(m, "ModelFormatError",
                                    "A model folder, tokenizer or weight file is not what it must be.", error,
                                    PyExc_ValueError),
      .device = add_exception(m, "DeviceError", "A device or backend cannot be had.", error, nullptr),
      .out_of_memory =
          add_exception(m, "OutOfMemory", "Host or device memory is exhausted.", error, PyExc_MemoryError),
      .cancelled = add_exception(m, "Cancelled", "The operation was stopped; the object stays usable.", error,
                                 nullptr),
      .unsupported = add_exception(m, "Unsupported", "The device has no kernel for this op.", error,
                                   PyExc_NotImplementedError),
      .io = add_exception(m, "IoError", "A file could not be read or written.", error, PyExc_OSError),
  };
  py::register_local_exception_translator(translate);
}

}  // namespace trivium::python
