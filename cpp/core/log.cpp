#include "core/log.h"

#include <atomic>
#include <cstdio>

#include "core/error.h"

namespace trivium {
namespace {

void print_to_stderr(LogLevel level, const char* message) {
  std::fprintf(stderr, "%s%s\n", level == LogLevel::warning ? "warning: " : "", one_line(message).c_str());
}

std::atomic<LogSink> g_sink{print_to_stderr};

}  // namespace

void set_log_sink(LogSink sink) { g_sink.store(sink ? sink : print_to_stderr); }

void log(LogLevel level, const std::string& message) { g_sink.load()(level, message.c_str()); }

}  // namespace trivium
