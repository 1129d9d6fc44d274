#include "io/mmap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "io/sigbus.h"

namespace trivium::io {
namespace {

constexpr int64_t kReadBytes = 16 << 20;  // one read: large enough for full speed on network file systems
constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = 2 << 20;

std::string reason(int error) { return std::strerror(error); }

int64_t modified_ns(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

int open_regular(const std::string& path, struct stat& info) {
  // O_NONBLOCK: opening a FIFO without a writer would wait for one.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (descriptor < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR || error == ELOOP || error == ENXIO)
      throw ModelFormatError(concat(path, ": cannot be opened: ", reason(error)));
    throw IoError(concat(path, ": cannot be opened: ", reason(error)));
  }
  if (::fstat(descriptor, &info) != 0) {
    const int error = errno;
    ::close(descriptor);
    throw IoError(concat(path, ": cannot be examined: ", reason(error)));
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(descriptor);
    throw ModelFormatError(concat(path, ": is ", kind_of(info.st_mode), ", expected a regular file"));
  }
  return descriptor;
}

}  // namespace

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  struct stat info {};
  descriptor_ = open_regular(path_, info);
  size_ = info.st_size;
  modified_ns_ = modified_ns(info);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      modified_ns_(other.modified_ns_) {}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool InputFile::is_remote() const {
  // f_type values of statfs(2).
  static constexpr uint32_t kRemote[] = {
      0x00006969,  // NFS
      0x0BD00BD0,  // Lustre
      0x65735546,  // FUSE
      0xFF534D42,  // CIFS
      0xFE534D42,  // SMB2
      0x0000517B,  // SMB
      0x01021997,  // 9p
      0x00C36400,  // Ceph
      0x5346414F,  // AFS
      0x73757245,  // Coda
      0x47504653,  // GPFS
      0x19830326,  // BeeGFS
      0x786F4256,  // VirtualBox shared folders
  };
  struct statfs info {};
  if (::fstatfs(descriptor_, &info) != 0) return false;
  const auto type = static_cast<uint32_t>(info.f_type);
  return std::find(std::begin(kRemote), std::end(kRemote), type) != std::end(kRemote);
}

void InputFile::read(int64_t offset, void* destination, int64_t bytes, const CancelToken* cancel) const {
  auto* to = static_cast<char*>(destination);
  while (bytes > 0) {
    if (cancel) cancel->check();
    const auto wanted = static_cast<size_t>(std::min(bytes, kReadBytes));
    const ssize_t got = ::pread(descriptor_, to, wanted, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError(concat(path_, ": reading at byte ", offset, " failed: ", reason(errno)));
    if (got == 0)
      throw ModelFormatError(concat(path_, ": file ends at byte ", offset, ", ", bytes,
                                    " more are needed; it was truncated while it was being read"));
    to += got;
    offset += got;
    bytes -= got;
  }
}

void InputFile::check_unchanged() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0) throw IoError(concat(path_, ": cannot be examined: ", reason(errno)));
  if (info.st_size != size_)
    throw ModelFormatError(
        concat(path_, ": had ", size_, " bytes when it was opened and has ", info.st_size, " now"));
  if (modified_ns(info) != modified_ns_)
    throw ModelFormatError(concat(path_, ": was modified after it was opened"));
}

bool is_present(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

std::string read_small_file(const std::string& path, int64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes)
    throw ModelFormatError(
        concat(path, ": has ", file.size(), " bytes, at most ", max_bytes, " are accepted"));
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, text.data(), file.size());
  return text;
}

std::shared_ptr<FileBytes> FileBytes::map(const InputFile& file) {
  std::shared_ptr<FileBytes> bytes(new FileBytes);
  bytes->size_ = file.size();
  if (file.size() == 0) return bytes;
  void* memory =
      ::mmap(nullptr, static_cast<size_t>(file.size()), PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    const std::string message =
        concat(file.path(), ": mapping ", file.size(), " bytes failed: ", reason(error));
    if (error == ENOMEM) throw OutOfMemory(message);
    throw IoError(message);
  }
  bytes->data_ = static_cast<const char*>(memory);
  try {
    bytes->range_ = add_mapped_range(bytes->data_, file.size(), file.path());
  } catch (...) {
    ::munmap(memory, static_cast<size_t>(file.size()));
    throw;
  }
  return bytes;
}

std::shared_ptr<FileBytes> FileBytes::read(const InputFile& file, int64_t aligned_offset,
                                           const CancelToken* cancel) {
  std::shared_ptr<FileBytes> bytes(new FileBytes);
  const int64_t pad = (kAlignment - aligned_offset % kAlignment) % kAlignment;
  // Huge pages halve what reading gigabytes of weights costs in address translation.
  const int64_t alignment = file.size() >= kHugePage ? kHugePage : kAlignment;
  const int64_t needed = (pad + file.size() + alignment) / alignment * alignment;
  bytes->allocation_ = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(needed));
  if (bytes->allocation_ == nullptr)
    throw OutOfMemory(concat(file.path(), ": no memory for its ", file.size(), " bytes"));
  if (alignment == kHugePage) ::madvise(bytes->allocation_, static_cast<size_t>(needed), MADV_HUGEPAGE);
  char* start = static_cast<char*>(bytes->allocation_) + pad;
  ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  file.read(0, start, file.size(), cancel);
  bytes->data_ = start;
  bytes->size_ = file.size();
  return bytes;
}

FileBytes::~FileBytes() {
  if (range_ != nullptr) {
    remove_mapped_range(range_);
    ::munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
  }
  std::free(allocation_);
}

bool FileBytes::damaged() const { return range_ != nullptr && is_damaged(range_); }

void FileBytes::drop(const void* begin, int64_t bytes) const {
  // After a fault the pages are zeros, not the file's: dropping them would bring the fault back.
  if (range_ == nullptr || damaged()) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t last = first + static_cast<uintptr_t>(bytes);
  const auto base = reinterpret_cast<uintptr_t>(data_);
  if (first < base || last > base + static_cast<uintptr_t>(size_)) return;
  const uintptr_t from = (first + page - 1) / page * page;
  const uintptr_t to = last / page * page;
  if (from < to) ::madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

}  // namespace trivium::io
