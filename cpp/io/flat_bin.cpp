#include "io/flat_bin.h"

#include <algorithm>

#include "io/safetensors_archive.h"

namespace trivium::io {

FlatBinModel open_flat_bin(const std::string& path, LoadMode mode, const CancelToken* cancel) {
  WeightFile file{InputFile(path), "", {}};
  file.header.resize(static_cast<size_t>(std::min(file.input.size(), kFlatBinHeaderBytes)));
  file.input.read(0, file.header.data(), static_cast<int64_t>(file.header.size()));
  const FlatBinHeader header = parse_flat_bin_header(file.header, path);
  file.tensors = flat_bin_tensors(header, file.input.size(), path);
  std::vector<WeightFile> files;
  files.push_back(std::move(file));
  return {header, std::make_shared<FileArchive>(std::move(files), mode, cancel)};
}

}  // namespace trivium::io
