#include "getp/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace trivium::getp {

namespace {
std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}
}  // namespace

bool is_terminal(int fd) { return ::isatty(fd) == 1 && variable("TERM") != "dumb"; }

bool takes_colour(int fd) { return is_terminal(fd) && variable("NO_COLOR").empty(); }

std::string fit_to_width(std::string text, int fd) {
  struct winsize size {};
  // A character in the last column wraps on some terminals.
  if (::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 && text.size() >= size.ws_col)
    text.resize(size.ws_col - 1u);
  return text;
}

}  // namespace trivium::getp
