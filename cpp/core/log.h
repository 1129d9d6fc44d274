// Warnings for people: one sink, stderr by default, Python's logging when the module is loaded. Results
// never go through here.
#pragma once

#include <string>

namespace trivium {

enum class LogLevel { info, warning };
using LogSink = void (*)(LogLevel level, const char* message);

void set_log_sink(LogSink sink);  // null restores the default
void log(LogLevel level, const std::string& message);
inline void warn(const std::string& message) { log(LogLevel::warning, message); }

}  // namespace trivium
