// What the machine and this build offer.
#include <pybind11/stl.h>

#include "bindings.h"
#include "core/parallel.h"
#include "core/registry.h"

namespace trivium::python {
namespace {

py::list backends() {
  std::vector<BackendReport> reports;
  {
    const py::gil_scoped_release release;
    reports = backend_report();
  }
  py::list out;
  for (const BackendReport& r : reports) {
    py::dict row;
    row["name"] = r.name;
    row["loaded"] = r.loaded;
    row["file"] = r.file;
    row["reason"] = r.reason;
    py::list devices;
    for (size_t i = 0; i < r.devices.size(); ++i) {
      const DeviceProperties& d = r.devices[i];
      devices.append(
          py::str(r.refusals[i].empty() ? std::string(d.name) + " (" + d.arch + ")" : r.refusals[i]));
    }
    row["devices"] = devices;
    out.append(row);
  }
  return out;
}

// The devices that a tensor or a model can be put on.
std::vector<std::string> devices() {
  std::vector<std::string> names;
  for (const BackendReport& r : backend_report())
    for (size_t i = 0; i < r.devices.size(); ++i)
      if (r.refusals[i].empty()) names.push_back(r.name == "cpu" ? r.name : concat(r.name, ":", i));
  return names;
}

}  // namespace

void register_system(py::module_& m) {
  m.def("backends", backends, "Each backend: name, loaded, file, reason it is not loaded, devices.");
  m.def("devices", devices, py::call_guard<py::gil_scoped_release>(),
        "What can be named as `device`: [\"cpu\", \"cuda:0\", ...].");
  m.def(
      "synchronize",
      [](const std::string& name) {
        const Device device = parse_device(name);
        if (const auto wait = runtime(device).device_synchronize)
          if (const Status s = wait(device.index); s != Status::ok) throw_status(device.kind, s);
      },
      py::arg("device"), py::call_guard<py::gil_scoped_release>(),
      "Waits until all work on the device is done. Reading a result waits for it by itself.");
  m.def(
      "build_id", [] { return build_id(); }, "Version and commit of the native library.");
  m.def("cpu_level", cpu_level,
        "Instruction set of the CPU kernels: \"avx512-bf16\", \"avx2\" or \"scalar\".");
  m.def("num_threads", num_threads, "CPU threads used by kernels.");
  m.def(
      "set_num_threads",
      [](int n) {
        TRIVIUM_CHECK(n >= 0, "set_num_threads: n is ", n, ", expected at least 0 (0: the default)");
        set_num_threads(n);
      },
      py::arg("n"), py::call_guard<py::gil_scoped_release>(),
      "Sets the number of CPU threads; 0 restores the default.");
}

}  // namespace trivium::python
