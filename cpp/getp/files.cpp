#include "getp/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "getp/memory.h"

namespace trivium::getp {

namespace fs = std::filesystem;

namespace {

constexpr size_t kReadBytes = 1 << 16;
constexpr size_t kWriteBytes = 1 << 16;
constexpr int kMaxLinks = 40;  // as Linux follows

// Opening a FIFO waits for its other end, and a signal ends the wait.
[[noreturn]] void throw_open_error(const std::string& path, const char* what, int error) {
  if (error == EINTR) throw Cancelled("interrupted");
  throw_io_error(path, what, error);
}

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags, const char* what)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) throw_open_error(path, what, errno);
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  void close(const std::string& path) {
    const int fd = std::exchange(fd_, -1);
    if (::close(fd) != 0) throw_io_error(path, "cannot close", errno);
  }

 private:
  int fd_;
};

void write_direct(int fd, const std::string& name, const std::function<void(const Write&)>& fill) {
  std::string buffer;
  fill([&](std::string_view bytes) {
    buffer += bytes;
    if (buffer.size() < kWriteBytes) return;
    write_all(fd, buffer, name);
    buffer.clear();
  });
  write_all(fd, buffer, name);
}

std::string read_descriptor(int fd, const std::string& path, size_t max_bytes) {
  std::string out;
  std::string buffer(kReadBytes, '\0');
  for (;;) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) throw Cancelled("interrupted");
    if (n < 0) throw_io_error(path, "cannot read", errno);
    if (n == 0) return out;
    out.append(buffer, 0, static_cast<size_t>(n));
    if (out.size() > max_bytes)
      throw InvalidArgument(concat(path, ": larger than ", format_bytes(static_cast<int64_t>(max_bytes))));
  }
}

// The number in "/dev/fd/7", when `path` starts with `folder`; else -1.
int numbered(const std::string& path, std::string_view folder) {
  int fd = -1;
  if (!path.starts_with(folder)) return -1;
  const char *begin = path.data() + folder.size(), *end = path.data() + path.size();
  const auto [last, error] = std::from_chars(begin, end, fd);
  return error == std::errc() && last == end && fd >= 0 ? fd : -1;
}

}  // namespace

int descriptor_of(const std::string& path) {
  if (path == "-" || path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  return std::max(numbered(path, "/dev/fd/"), numbered(path, "/proc/self/fd/"));
}

std::string real_target(const std::string& path) {
  fs::path at = path;
  std::error_code error;
  for (int i = 0; i < kMaxLinks && fs::is_symlink(at, error) && !error; ++i) {
    const fs::path next = fs::read_symlink(at, error);
    if (error) break;
    at = next.is_absolute() ? next : at.parent_path() / next;
  }
  return at.string();
}

void throw_io_error(const std::string& path, const std::string& what, int error) {
  std::string message = concat(path, ": ", what, ": ", std::strerror(error));
  if ((error == ENOSPC || error == EDQUOT) && is_plain_target(path)) {
    struct statvfs info {};
    if (::statvfs(folder_of(path).c_str(), &info) == 0)
      message += concat(
          " (", format_bytes(static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize)),
          " free in ", folder_of(path), ")");
  }
  throw IoError(message);
}

// read(2) and not stdio: a terminal's line must arrive when it is complete.
LineReader::LineReader(const std::string& path) : path_(path) {
  fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw_open_error(path, "cannot read", errno);
}

LineReader::~LineReader() {
  if (fd_ != STDIN_FILENO) ::close(fd_);
}

bool LineReader::fill() {
  buffer_.resize(kReadBytes);
  at_ = 0;
  const ssize_t n = ::read(fd_, buffer_.data(), kReadBytes);
  const int error = errno;
  buffer_.resize(n > 0 ? static_cast<size_t>(n) : 0);
  if (n < 0 && error == EINTR) throw Cancelled("interrupted");
  if (n < 0) throw_io_error(path_, "cannot read", error);
  return n > 0;
}

bool LineReader::next(Line& line, size_t max_bytes) {
  line = {};
  bool any = false;
  while (at_ < buffer_.size() || fill()) {
    any = true;
    const size_t end = buffer_.find('\n', at_);
    const size_t stop = end == std::string::npos ? buffer_.size() : end;
    // One byte more than allowed may be the CR.
    if (line.text.size() + (stop - at_) > max_bytes + 1) {
      line.too_long = true;
      line.text.clear();
      line.text.shrink_to_fit();
    }
    if (!line.too_long) line.text.append(buffer_, at_, stop - at_);
    at_ = stop;
    if (end == std::string::npos) continue;
    ++at_;
    break;
  }
  if (!line.text.empty() && line.text.back() == '\r') line.text.pop_back();
  if (line.text.size() > max_bytes) line = {"", true};
  return any;
}

bool is_plain_target(const std::string& path) {
  if (descriptor_of(path) >= 0) return false;
  struct stat info {};
  return ::stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode);
}

void check_writable(const std::string& path) {
  if (const int fd = descriptor_of(path); fd >= 0) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) throw_io_error(path == "-" ? "standard output" : path, "cannot write", errno);
    if ((flags & O_ACCMODE) == O_RDONLY)
      throw_io_error(path == "-" ? "standard output" : path, "cannot write", EBADF);
    return;
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) throw_io_error(path, "cannot write", EISDIR);
    if (::access(path.c_str(), W_OK) != 0) throw_io_error(path, "cannot write", errno);
    if (!S_ISREG(info.st_mode)) return;
  }
  const std::string folder = folder_of(real_target(path));
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw_io_error(path, concat("cannot write into ", folder), errno);
}

void write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_io_error(path, "cannot write", errno);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void sync_folder_of(const std::string& path) {
  const std::string folder = folder_of(path);
  const FileDescriptor fd(folder, O_RDONLY | O_DIRECTORY, "cannot open");
  // Some file systems cannot sync a folder; then there is nothing more to do.
  if (::fsync(fd.get()) != 0 && errno != EINVAL && errno != ENOTSUP)
    throw_io_error(folder, "cannot sync", errno);
}

void write_file(const std::string& path, const std::function<void(const Write&)>& fill) {
  if (const int fd = descriptor_of(path); fd >= 0)
    return write_direct(fd, path == "-" ? "standard output" : path, fill);
  if (!is_plain_target(path)) {
    FileDescriptor fd(path, O_WRONLY, "cannot write");
    write_direct(fd.get(), path, fill);
    return fd.close(path);
  }
  const std::string target = real_target(path);
  const std::string temporary = target + ".tmp";
  // A link there would be written through, a FIFO waited for.
  FileDescriptor fd(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK, "cannot write");
  try {
    struct stat info {};
    // Some file systems have no permissions to set.
    if (::stat(target.c_str(), &info) == 0 && ::fchmod(fd.get(), info.st_mode & 0777) != 0 &&
        errno != EPERM && errno != ENOTSUP)
      throw_io_error(path, "cannot keep its permissions", errno);
    write_direct(fd.get(), path, fill);
    if (::fsync(fd.get()) != 0) throw_io_error(path, "cannot write", errno);
    fd.close(path);
    if (::rename(temporary.c_str(), target.c_str()) != 0) throw_io_error(path, "cannot write", errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder_of(target);
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const FileDescriptor fd(path, O_RDONLY, "cannot read");
  return read_descriptor(fd.get(), path, max_bytes);
}

std::string read_stdin(size_t max_bytes) {
  return read_descriptor(STDIN_FILENO, "standard input", max_bytes);
}

bool file_exists(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0;
}

}  // namespace trivium::getp
