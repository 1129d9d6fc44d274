// trivium._core: the package's only extension module.
#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native core of the trivium package; use it through `import trivium`.";
  trivium::python::register_errors(m);
  trivium::python::register_log();
  trivium::python::register_tensor(m);
  trivium::python::register_tokenizer(m);
  trivium::python::register_engine(m);
  trivium::python::register_ops(m);
  trivium::python::register_lut(m);
  trivium::python::register_safetensors(m);
  trivium::python::register_mlstm(m);
  trivium::python::register_system(m);
}
