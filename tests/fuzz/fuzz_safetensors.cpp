// A safetensors file in memory: refused with a ModelFormatError, or every tensor lies inside its data.
#include <cstdlib>

#include "io/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trivium::io;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto file_size = static_cast<int64_t>(size);
  try {
    const int64_t header_bytes = safetensors_header_bytes(file.substr(0, 8), file_size, "fuzz.safetensors");
    const std::string_view header = file.substr(8, static_cast<size_t>(header_bytes));
    int64_t covered = kSafetensorsPrefixBytes + header_bytes;
    for (const TensorEntry& tensor : parse_safetensors_header(header, file_size, "fuzz.safetensors")) {
      if (tensor.begin != covered || tensor.end < tensor.begin) std::abort();
      covered = tensor.end;
      if (const auto dtype = dtype_of_tag(tensor.dtype_tag))
        if (tensor.shape.numel() * trivium::size_of(*dtype) != tensor.end - tensor.begin) std::abort();
    }
    if (covered != file_size) std::abort();
  } catch (const trivium::ModelFormatError&) {
  }
  return 0;
}
