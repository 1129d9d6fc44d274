// The streams a LUT operation runs its stages on, joined by events; nothing here waits for a device.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace trivium::lut {

// Reused from call to call; not by two threads at once. On the CPU the stages run one after another in the
// order they are queued; the trace is the same on every device.
class Workspace {
 public:
  static constexpr int kStreams = 3;

  explicit Workspace(Device device);
  Device device() const { return device_; }

  // Queues a kernel on stream `stream`; `name` is its entry's, `stage` what the trace calls it.
  template <class Args>
  void run(int stream, const char* stage, Status (*Kernels::*entry)(StreamHandle*, const Args*),
           const char* name, const Args& args) {
    if (trace) trace->push_back(concat(stage, " on ", stream));
    call_kernel(device_, entry, name, handle(stream), args);
  }
  // What the stages of an operation rest on: all streams wait for it, and the trace leaves it out.
  template <class Args>
  void run_first(Status (*Kernels::*entry)(StreamHandle*, const Args*), const char* name, const Args& args) {
    call_kernel(device_, entry, name, handle(0), args);
    hold_others();
  }
  void wait() { streams_[0]->synchronize(); }
  // Later work of `waiting` starts after what `other` has been given so far.
  void join(int waiting, int other);
  // A float32 result that the kernels write in full. On the CPU a large one takes the memory of an earlier
  // one that nobody holds any more: fresh pages would cost more than what is written to them.
  Tensor result(const Shape& shape);
  // Blocks the host until stream 0 is done: the end of an operation whose result is returned.
  void finish();

  std::vector<std::string>* trace = nullptr;  // when set: one line a stage, record and wait

 private:
  StreamHandle* handle(int stream) const;
  void hold_others();  // until stream 0 is done with what it has been given

  Device device_;
  std::optional<Stream> streams_[kStreams];
  std::optional<Event> events_[kStreams];
  Tensor spare_;  // the memory of the last large result
};

}  // namespace trivium::lut
