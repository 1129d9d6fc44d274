// model.bin: the first 8 bytes are the size of the file, the rest its beginning. An accepted header covers
// the file exactly.
#include <cstdlib>
#include <cstring>

#include "io/flat_bin.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  int64_t file_size = 0;
  if (size < sizeof file_size) return 0;
  std::memcpy(&file_size, data, sizeof file_size);
  const std::string_view start(reinterpret_cast<const char*>(data) + 8, size - 8);
  try {
    const auto header = trivium::io::parse_flat_bin_header(start, "model.bin");
    int64_t covered = trivium::io::kFlatBinHeaderBytes;
    for (const auto& tensor : trivium::io::flat_bin_tensors(header, file_size, "model.bin")) {
      if (tensor.begin != covered || tensor.end < tensor.begin) std::abort();
      covered = tensor.end;
    }
    if (covered != file_size) std::abort();
  } catch (const trivium::ModelFormatError&) {
  }
  return 0;
}
