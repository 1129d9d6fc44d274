// The streams a LUT operation runs its stages on, joined by events.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace trivium::lut {

// Stream 0 is the default stream of the device, on which an operation begins and ends: when a call returns,
// its results are queued there, and whatever comes later on that stream sees them. Reused from call to call;
// not by two threads at once. On the CPU the stages run one after another in the order they are queued; the
// trace is the same on every device.
class Workspace {
 public:
  static constexpr int kStreams = 3;

  explicit Workspace(Device device);
  Device device() const { return device_; }

  // Queues a kernel on stream `stream`; `name` is its entry's, `stage` what the trace calls it.
  template <class Args>
  void run(int stream, const char* stage, Status (*Kernels::*entry)(StreamHandle*, const Args*),
           const char* name, const Args& args) {
    enter(stream);
    if (trace) trace->push_back(concat(stage, " on ", stream));
    call_kernel(device_, entry, name, streams_[stream]->handle(), args);
  }
  // What the stages of an operation rest on, before it begins; the trace leaves it out.
  template <class Args>
  void run_first(Status (*Kernels::*entry)(StreamHandle*, const Args*), const char* name, const Args& args) {
    call_kernel(device_, entry, name, streams_[0]->handle(), args);
  }
  // Later work of `waiting` starts after what `other` has been given so far.
  void join(int waiting, int other);
  // Memory in the order of stream 0. Other streams may use what was had before the operation began, or before
  // they were made to wait for stream 0.
  Tensor buffer(const Shape& shape, Dtype dtype) const { return Tensor::in_order(shape, dtype, device_); }
  // A copy of a host tensor in such memory, itself on the CPU. Waits until it is copied.
  Tensor put(const Tensor& host) const;
  // A float32 result that the kernels write in full. On the CPU a large one takes the memory of an earlier
  // one that nobody holds any more: fresh pages would cost more than what is written to them.
  Tensor result(const Shape& shape);

  std::vector<std::string>* trace = nullptr;  // when set: one line a stage, record and wait

 private:
  friend class Operation;
  void begin();             // the other streams start after what stream 0 has been given so far
  void enter(int stream);   // before a stream's first work of an operation
  void abandon() noexcept;  // after an error: stream 0 waits for all

  Device device_;
  std::optional<Stream> streams_[kStreams];
  std::optional<Event> events_[kStreams], begun_;
  bool entered_[kStreams] = {};
  Tensor spare_;  // the memory of the last large result
};

// From the first stage of an operation to its last, which leaves no stream but 0 with work that nothing has
// joined. To be made after the buffers: when an error ends it, they are given back after what was queued on
// any stream.
class Operation {
 public:
  explicit Operation(Workspace& work) : work_(work), errors_(std::uncaught_exceptions()) { work.begin(); }
  ~Operation() {
    if (std::uncaught_exceptions() > errors_) work_.abandon();
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  Workspace& work_;
  int errors_;
};

}  // namespace trivium::lut
