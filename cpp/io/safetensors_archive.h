// The TensorArchive that every weight format ends in: files in memory and a table of extents in them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/mmap.h"
#include "io/safetensors.h"

namespace trivium::io {

// One weight file whose header was read and checked; its data is not loaded yet.
struct WeightFile {
  InputFile input;
  std::string header;                // its bytes before the data
  std::vector<TensorEntry> tensors;  // within `input`: begin <= end <= input.size()
};

class FileArchive final : public TensorArchive {
 public:
  // Loads the data of all files. A tensor name in two files is a ModelFormatError.
  FileArchive(std::vector<WeightFile> files, LoadMode mode, const CancelToken* cancel);

  const std::map<std::string, TensorEntry, std::less<>>& entries() const override { return entries_; }
  Tensor tensor(std::string_view name) const override;
  Tensor view(std::string_view name) const override;
  int64_t total_bytes() const override;
  std::string file_of(std::string_view name) const override;
  uint64_t fingerprint(const CancelToken* cancel, const ByteProgress& progress) const override;
  bool is_mapped(const Tensor& tensor) const override;
  void drop_pages(const Tensor& tensor) const override;
  void check_readable() const override;
  void check_unchanged() const override;

 private:
  struct File {
    InputFile input;
    std::string header;
    std::shared_ptr<FileBytes> bytes;
  };
  const TensorEntry& entry(std::string_view name) const;

  std::vector<File> files_;
  std::map<std::string, TensorEntry, std::less<>> entries_;
};

}  // namespace trivium::io
