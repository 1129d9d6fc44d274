// Errors: one exception type per kind a caller can act on, and TRIVIUM_CHECK for argument checks.
// Library code throws these and nothing else; it never prints, exits or asserts on user input.
#pragma once

#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace trivium {

// Base of all errors. what() is one sentence without a trailing newline.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A shape, dtype, range or option that a caller passed is wrong (Python: ValueError).
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A model folder, tokenizer or weight file is not what it must be (Python: ModelFormatError).
class ModelFormatError : public Error {
 public:
  using Error::Error;
};

// A device or backend that was asked for cannot be had.
class DeviceError : public Error {
 public:
  using Error::Error;
};

class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// The operation was stopped by a CancelToken; the object stays usable.
class Cancelled : public Error {
 public:
  using Error::Error;
};

// The backend has no kernel for this op (Python: NotImplementedError).
class NotImplemented : public Error {
 public:
  using Error::Error;
};

// A file could not be read or written (getp exits with 74).
class IoError : public Error {
 public:
  using Error::Error;
};

// Joins its arguments with operator<<.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

// `text` shortened to `limit` bytes with control and non-ASCII bytes escaped, for use inside a message.
std::string printable(std::string_view text, size_t limit = 80);

// `text` with its control characters escaped, for a message that must stay on one line.
std::string one_line(std::string_view text);

[[noreturn]] void throw_check_failed(const char* file, int line, const std::string& message);

}  // namespace trivium

// Throws InvalidArgument with the joined message when `condition` is false; the source position goes to
// the debug log only, so that users read one sentence about their input.
#define TRIVIUM_CHECK(condition, ...)                                                    \
  do {                                                                                   \
    if (!(condition)) [[unlikely]]                                                       \
      ::trivium::throw_check_failed(__FILE__, __LINE__, ::trivium::concat(__VA_ARGS__)); \
  } while (0)
