// trivium.ops: every public op, on anything tensor_from_python accepts.
#include "bindings.h"

namespace trivium::python {

void register_ops(py::module_& m) { m.def_submodule("ops", "Ops on tensors."); }

}  // namespace trivium::python
