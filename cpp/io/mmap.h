// Opening, mapping and reading of files that others wrote and may still be changing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/cancel.h"
#include "core/error.h"

namespace trivium::io {

// A regular file opened for reading. Symbolic links are followed (model caches link their files to blobs),
// but what they lead to must be a regular file: a FIFO, device or folder is an error, and opening one never
// blocks.
class InputFile {
 public:
  // ModelFormatError when there is no regular file at `path`, IoError when it cannot be opened.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // bytes, when it was opened
  int descriptor() const { return descriptor_; }
  // On a network or user-space file system, where page faults are slow and large reads are fast.
  bool is_remote() const;
  // Exactly `bytes` from `offset`, in large sequential reads. ModelFormatError when the file ends before.
  void read(int64_t offset, void* destination, int64_t bytes, const CancelToken* cancel = nullptr) const;
  // ModelFormatError when size or modification time are not what they were.
  void check_unchanged() const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
  int64_t modified_ns_ = 0;
};

// Whether there is anything of this name, also a link that leads nowhere or a file we may not examine:
// opening it then says what is wrong with it.
bool is_present(const std::string& path);

// The whole of a small file such as a config; ModelFormatError when it is larger than `max_bytes`.
std::string read_small_file(const std::string& path, int64_t max_bytes);

struct MappedRange;  // sigbus.h

// The bytes of a file in memory.
class FileBytes {
 public:
  // Read-only and private. Pages come from the disk when touched: see guarded().
  static std::shared_ptr<FileBytes> map(const InputFile& file);
  // A copy, placed so that byte `aligned_offset` of the file lies at a multiple of 64. Cancelled when
  // `cancel` asks.
  static std::shared_ptr<FileBytes> read(const InputFile& file, int64_t aligned_offset,
                                         const CancelToken* cancel = nullptr);
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  const char* data() const { return data_; }
  int64_t size() const { return size_; }
  bool is_mapped() const { return range_ != nullptr; }
  // Whether a read found pages of the file gone; what was read is zeros then.
  bool damaged() const;
  // Gives back the memory of the pages that lie wholly inside; they are read from the file again when
  // touched. Nothing happens when the bytes are a copy or lie elsewhere.
  void drop(const void* begin, int64_t bytes) const;

 private:
  FileBytes() = default;

  const char* data_ = nullptr;
  int64_t size_ = 0;
  void* allocation_ = nullptr;    // of a copy
  MappedRange* range_ = nullptr;  // of a mapping
};

// Runs `fn`. When it reads a page of a FileBytes mapping, on this thread, that is gone (the file was
// truncated, the disk failed), the rest of the mapping becomes zeros instead of the process being killed, and
// a ModelFormatError that names the file is thrown after `fn` returned. Wrap the body of each worker
// separately.
void guarded(const std::function<void()>& fn);

// For the main function of a program: a fault like this outside guarded() prints one sentence and exits with
// status 1. Without it the rest of the mapping becomes zeros, and damaged() tells. Faults elsewhere go to the
// handler that was there before.
void install_sigbus_handler();

}  // namespace trivium::io
