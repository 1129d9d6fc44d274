#include "getp/progress.h"

#include <unistd.h>

#include <cstdio>

#include "core/error.h"
#include "getp/memory.h"
#include "getp/terminal.h"

namespace trivium::getp {

namespace {
constexpr std::chrono::milliseconds kTerminalEvery{200}, kPlainEvery{10000}, kSilent{2000};

void show(const std::string& line, bool terminal) {
  if (terminal)
    std::fprintf(stderr, "\r\033[K%s", fit_to_width(line, STDERR_FILENO).c_str());
  else
    std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(stderr);
}
}  // namespace

Progress::Progress(int64_t requests, bool enabled)
    : requests_(requests),
      enabled_(enabled && requests > 0),
      terminal_(is_terminal(STDERR_FILENO)),
      start_(Clock::now()),
      last_(start_) {
  if (enabled_ && terminal_) draw(0, 0);
}

Progress::~Progress() {
  if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t done, int64_t tokens) {
  const auto now = Clock::now();
  if (!enabled_ || now - last_ < (terminal_ ? kTerminalEvery : kPlainEvery)) return;
  last_ = now;
  draw(done, tokens);
}

void Progress::finish(int64_t tokens) {
  if (!enabled_ || !terminal_) return;
  draw(requests_, tokens);
  std::fputs("\n", stderr);
  shown_ = false;
}

void Progress::draw(int64_t done, int64_t tokens) {
  shown_ = true;
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  char left[48] = "";
  if (done > 0 && done < requests_) {
    const auto eta =
        static_cast<int64_t>(seconds * static_cast<double>(requests_ - done) / static_cast<double>(done));
    std::snprintf(left, sizeof left, ", about %lld:%02lld left", static_cast<long long>(eta / 60),
                  static_cast<long long>(eta % 60));
  }
  const double rate = tokens > 0 ? static_cast<double>(tokens) / seconds : 0;
  char line[160];
  std::snprintf(line, sizeof line, "%lld of %lld requests, %lld tokens, %.1f tokens/s%s",
                static_cast<long long>(done), static_cast<long long>(requests_),
                static_cast<long long>(tokens), rate, left);
  show(line, terminal_);
}

LoadProgress::LoadProgress(std::string what, bool enabled)
    : what_(std::move(what)),
      enabled_(enabled),
      terminal_(is_terminal(STDERR_FILENO)),
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
  show(concat(what_, ": ", format_bytes(done), " of ", format_bytes(total), ", ",
              format_bytes(static_cast<int64_t>(static_cast<double>(done) / seconds)), "/s"),
       terminal_);
}

}  // namespace trivium::getp
