// CancelToken: a flag a caller sets to abandon a running generation; models poll it between layers.
#pragma once

#include <atomic>

#include "core/error.h"

namespace trivium {

class CancelToken {
 public:
  // Async-signal-safe: signal handlers may call it.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  void reset() { cancelled_.store(false, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  void check() const {
    if (cancelled()) [[unlikely]]
      throw Cancelled("cancelled");
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace trivium
