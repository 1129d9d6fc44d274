// How far a batch job or a load is: one rewritten line on a terminal, else a line every 10 s. To stderr.
// A terminal shows a job's line from its start, and keeps the last one.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace trivium::getp {

class Progress {
 public:
  Progress(int64_t requests, bool enabled);
  ~Progress();  // clears the terminal's line, unless the job was finished
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t requests_done, int64_t generated_tokens);  // as often as wanted: it limits itself
  void finish(int64_t generated_tokens);                         // all requests are done

 private:
  void draw(int64_t requests_done, int64_t generated_tokens);
  using Clock = std::chrono::steady_clock;
  int64_t requests_;
  bool enabled_, terminal_;
  bool shown_ = false;
  Clock::time_point start_, last_;
};

// How far loading is, in bytes; silent when it takes less than two seconds.
class LoadProgress {
 public:
  LoadProgress(std::string what, bool enabled);
  ~LoadProgress();
  LoadProgress(const LoadProgress&) = delete;
  LoadProgress& operator=(const LoadProgress&) = delete;
  void update(int64_t done_bytes, int64_t total_bytes);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  bool enabled_, terminal_;
  bool shown_ = false;
  Clock::time_point start_, last_;
};

}  // namespace trivium::getp
