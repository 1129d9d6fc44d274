#include "getp/progress.h"

#include <unistd.h>

#include <cstdio>

namespace trivium::getp {

namespace {
constexpr std::chrono::milliseconds kTerminalEvery{200}, kPlainEvery{10000};
}

Progress::Progress(int64_t requests, bool enabled)
    : requests_(requests),
      enabled_(enabled),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t done, int64_t tokens) {
  const auto now = Clock::now();
  if (!enabled_ || now - last_ < (terminal_ ? kTerminalEvery : kPlainEvery)) return;
  last_ = now;
  shown_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  char left[48] = "";
  if (done > 0) {
    const auto eta =
        static_cast<int64_t>(seconds * static_cast<double>(requests_ - done) / static_cast<double>(done));
    std::snprintf(left, sizeof left, ", about %lld:%02lld left", static_cast<long long>(eta / 60),
                  static_cast<long long>(eta % 60));
  }
  std::fprintf(stderr, "%s%lld of %lld requests, %lld tokens, %.1f tokens/s%s%s", terminal_ ? "\r\033[K" : "",
               static_cast<long long>(done), static_cast<long long>(requests_),
               static_cast<long long>(tokens), static_cast<double>(tokens) / seconds, left,
               terminal_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace trivium::getp
