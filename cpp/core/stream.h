// Stream, Event and Graph: opaque handles owned by a backend, wrapped for RAII. On the CPU both are empty:
// kernels run to completion inside the call.
#pragma once

#include <functional>

#include "core/device.h"

namespace trivium {

struct StreamHandle;  // owned by the backend
struct EventHandle;
struct GraphHandle;

class Event;

class Stream {
 public:
  explicit Stream(Device device);  // a new stream on `device`
  // Another library's stream, the vendor's handle `native`; it must outlive this. NotImplemented where the
  // backend has no such handles.
  Stream(Device device, void* native);
  // The device's default_stream().
  struct Shared {};
  Stream(Device device, Shared);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  StreamHandle* handle() const { return handle_; }
  void synchronize();             // blocks the host until all work queued so far is done
  void wait(const Event& event);  // later work on this stream starts after the event

 private:
  Device device_;
  StreamHandle* handle_ = nullptr;
  bool owned_ = true;
};

class Event {
 public:
  explicit Event(Device device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream& stream);
  void synchronize();
  EventHandle* handle() const { return handle_; }
  Device device() const { return device_; }

 private:
  Device device_;
  EventHandle* handle_ = nullptr;
};

// Work recorded once and repeated with the same arguments: a decode step costs one launch then.
class Graph {
 public:
  static bool supported(Device device);
  // Records what `enqueue` puts on the stream, without running it.
  Graph(Stream& stream, const std::function<void()>& enqueue);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(Stream& stream) const;

 private:
  Device device_;
  GraphHandle* handle_ = nullptr;
};

}  // namespace trivium
