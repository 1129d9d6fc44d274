// Files as getp needs them: bounded lines in, checked and atomic writes out. Everything throws IoError with
// the path and the system's reason.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace trivium::getp {

// "PATH: cannot write: No space left on device (0 B free)".
[[noreturn]] void throw_io_error(const std::string& path, const std::string& what, int error);

struct Line {
  std::string text;       // without LF and without one CR before it
  bool too_long = false;  // text is empty: the line was longer than the limit and has been skipped
};

// Reads lines of any file, "-" for stdin. A last line without LF counts. Cancelled when a signal interrupts
// it.
class LineReader {
 public:
  explicit LineReader(const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  bool next(Line& line, size_t max_bytes);  // false at the end

 private:
  bool fill();

  std::string path_;
  int fd_ = -1;
  std::string buffer_;
  size_t at_ = 0;
};

// The open descriptor that `path` names: "-", /dev/stdout, /dev/stderr, /dev/fd/N, /proc/self/fd/N; else -1.
// Such an output goes where the caller's redirection stands: a file behind it is never replaced.
int descriptor_of(const std::string& path);

// What `path` is a link to in the end, there or not; `path` itself when it is none.
std::string real_target(const std::string& path);

// Whether `path` is (or may become) a regular file: then it is written beside and renamed. Devices, pipes and
// descriptors are written directly.
bool is_plain_target(const std::string& path);

// Throws unless write_file(path, ...) can be expected to work: the folder exists and is writable, the file
// too.
void check_writable(const std::string& path);

using Write = std::function<void(std::string_view)>;
// Calls fill(write) to produce the contents. A plain target gets them whole or not at all: temporary file
// beside it with the permissions of the old file, fsync, rename, fsync of the folder. A link's target is
// replaced, not the link.
void write_file(const std::string& path, const std::function<void(const Write&)>& fill);

void write_all(int fd, std::string_view bytes, const std::string& path);
void sync_folder_of(const std::string& path);
std::string read_file(const std::string& path, size_t max_bytes);  // Cancelled when a signal interrupts it
std::string read_stdin(size_t max_bytes);
bool file_exists(const std::string& path);

}  // namespace trivium::getp
