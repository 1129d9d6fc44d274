// safetensors files and sharded folders. Everything is validated before anything is mapped; a truncated
// or hostile file is a ModelFormatError that names the file and the tensor.
// Source: the safetensors format description (8-byte header length, JSON header, data).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/cancel.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "core/tensor.h"

namespace trivium::io {

enum class LoadMode { automatic, mmap, read };  // automatic: mmap on local disks, large reads on network ones

// Told how many bytes of how many are done; called by the thread that asked for the work.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

struct TensorEntry {
  std::string name;
  std::string dtype_tag;  // "BF16", "U8", ... as written; unknown tags are kept until the tensor is used
  Shape shape;
  int64_t begin = 0;  // bytes from the start of the file
  int64_t end = 0;
  int file = 0;  // index into the archive's files
};

// One or more safetensors files seen as one set of names.
class TensorArchive {
 public:
  // A .safetensors file, or a folder with model.safetensors, or with model.safetensors.index.json and its
  // shards (only plain file names inside the folder are followed), or with *.safetensors shards without an
  // index (as in OpenAI's original/ folder). Maps or reads the data;
  // `cancel` stops the reading.
  static std::shared_ptr<TensorArchive> open(const std::string& path, LoadMode mode = LoadMode::automatic,
                                             const CancelToken* cancel = nullptr);

  virtual ~TensorArchive() = default;
  virtual const std::map<std::string, TensorEntry, std::less<>>& entries() const = 0;
  bool contains(std::string_view name) const { return entries().find(name) != entries().end(); }
  // The tensor as it lies in the file: read-only, shares (and keeps alive) the mapping. ModelFormatError
  // when it is missing, or has a dtype we do not know. The format promises no alignment: a tensor that lies
  // at an address its elements cannot be read from is copied.
  virtual Tensor tensor(std::string_view name) const = 0;
  // The same without that copy: its bytes may have to be read with memcpy.
  virtual Tensor view(std::string_view name) const = 0;
  virtual int64_t total_bytes() const = 0;                       // of all files
  virtual std::string file_of(std::string_view name) const = 0;  // path, for messages
  // A 64-bit hash of the files' names and of all their bytes, in parallel; the same for any number of
  // threads. Mapped files are read through a small buffer, so that their pages do not count as this process's
  // memory.
  virtual uint64_t fingerprint(const CancelToken* cancel = nullptr,
                               const ByteProgress& progress = {}) const = 0;
  // Whether the data lies in a mapping of the file, in the file system's small pages.
  virtual bool is_mapped(const Tensor& tensor) const = 0;
  // Tells the kernel that the pages of `tensor` are no longer needed (after a conversion copied them).
  virtual void drop_pages(const Tensor& tensor) const = 0;
  // ModelFormatError if a read, since the data was opened, found a part of a file gone. Needs no system call.
  virtual void check_readable() const = 0;
  // ModelFormatError if a file changed size or was written to since it was opened. Call it after a load.
  virtual void check_unchanged() const = 0;
};

// Writes one file; tensors must be contiguous on the CPU. Writes to a temporary name and renames.
void save_safetensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors);

}  // namespace trivium::io
