// Reading and writing safetensors files, for models that Python saves (trivium/lut).
#include "io/safetensors.h"

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>

#include "bindings.h"

namespace trivium::python {

void register_safetensors(py::module_& m) {
  m.def(
      "save_safetensors",
      [](const std::filesystem::path& path, const std::map<std::string, ArrayLike>& tensors) {
        std::vector<std::pair<std::string, Tensor>> list;
        for (const auto& [name, array] : tensors) list.emplace_back(name, array.tensor.to(Device{}));
        io::save_safetensors(path.string(), list);
      },
      py::arg("path"), py::arg("tensors"),
      "Writes one safetensors file: under a temporary name, then renamed.");
  m.def(
      "load_safetensors",
      [](const std::filesystem::path& path) {
        const auto archive = io::TensorArchive::open(path.string(), io::LoadMode::read);
        std::map<std::string, Tensor> tensors;
        for (const auto& [name, entry] : archive->entries()) tensors.emplace(name, archive->tensor(name));
        return tensors;
      },
      py::arg("path"), "The tensors of a safetensors file or folder, by name; read-only.");
}

}  // namespace trivium::python
