#include "getp/progress.h"

#include <unistd.h>

#include <cstdio>

#include "getp/memory.h"

namespace trivium::getp {

namespace {
constexpr std::chrono::milliseconds kTerminalEvery{200}, kPlainEvery{10000}, kSilent{2000};
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

LoadProgress::LoadProgress(std::string what, bool enabled)
    : what_(std::move(what)),
      enabled_(enabled),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

LoadProgress::~LoadProgress() {
  if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
}

void LoadProgress::update(int64_t done, int64_t total) {
  const auto now = Clock::now();
  if (!enabled_ || now - start_ < kSilent || now - last_ < (terminal_ ? kTerminalEvery : kPlainEvery)) return;
  last_ = now;
  shown_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::fprintf(stderr, "%s%s: %s of %s, %s/s%s", terminal_ ? "\r\033[K" : "", what_.c_str(),
               format_bytes(done).c_str(), format_bytes(total).c_str(),
               format_bytes(static_cast<int64_t>(static_cast<double>(done) / seconds)).c_str(),
               terminal_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace trivium::getp
