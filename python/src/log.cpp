// Warnings of the library go to the Python logger "trivium".
#include "core/log.h"

#include "bindings.h"

namespace trivium::python {
namespace {

void log_to_python(LogLevel level, const char* message) {
  if (!interpreter_alive()) return;
  const py::gil_scoped_acquire gil;
  const py::error_scope pending;  // a warning must not disturb an exception on its way up
  try {
    const py::object logger = py::module_::import("logging").attr("getLogger")("trivium");
    logger.attr(level == LogLevel::warning ? "warning" : "info")("%s", py::str(message));
  } catch (py::error_already_set& e) {
    e.discard_as_unraisable("trivium log sink");
  }
}

}  // namespace

bool interpreter_alive() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
}

void register_log() {
  set_log_sink(log_to_python);
  // Threads that outlive the interpreter print to stderr again.
  py::module_::import("atexit").attr("register")(py::cpp_function([] { set_log_sink(nullptr); }));
}

}  // namespace trivium::python
