#include "core/stream.h"

#include "core/registry.h"

namespace trivium {
namespace {

void check(Device device, Status status) {
  if (status != Status::ok) throw_status(device.kind, status);
}

}  // namespace

Stream::Stream(Device device) : device_(device) {
  check(device, runtime(device).stream_create(device.index, &handle_));
}

Stream::Stream(Device device, void* native) : device_(device) {
  const Runtime& r = runtime(device);
  if (!r.stream_borrow) throw NotImplemented(concat("streams of other libraries on ", device));
  check(device, r.stream_borrow(device.index, native, &handle_));
}

Stream::Stream(Device device, Shared) : device_(device), handle_(default_stream(device)), owned_(false) {}

Stream::~Stream() {
  if (owned_) runtime(device_).stream_destroy(handle_);
}

void Stream::synchronize() { check(device_, runtime(device_).stream_synchronize(handle_)); }

void Stream::wait(const Event& event) {
  check(device_, runtime(device_).stream_wait(handle_, event.handle()));
}

Event::Event(Device device) : device_(device) {
  check(device, runtime(device).event_create(device.index, &handle_));
}

Event::~Event() { runtime(device_).event_destroy(handle_); }

void Event::record(Stream& stream) {
  check(device_, runtime(device_).event_record(handle_, stream.handle()));
}

bool Graph::supported(Device device) { return runtime(device).graph_begin != nullptr; }

Graph::Graph(Stream& stream, const std::function<void()>& enqueue) : device_(stream.device()) {
  check(device_, runtime(device_).graph_begin(stream.handle()));
  try {
    enqueue();
  } catch (...) {
    // The stream must leave its recording state; the error that led here is the one to report.
    if (runtime(device_).graph_end(stream.handle(), &handle_) == Status::ok && handle_)
      runtime(device_).graph_destroy(handle_);
    throw;
  }
  check(device_, runtime(device_).graph_end(stream.handle(), &handle_));
}

Graph::~Graph() { runtime(device_).graph_destroy(handle_); }

void Graph::launch(Stream& stream) const {
  check(device_, runtime(device_).graph_launch(handle_, stream.handle()));
}

void Event::synchronize() { check(device_, runtime(device_).event_synchronize(handle_)); }

}  // namespace trivium
