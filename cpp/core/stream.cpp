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

Stream::~Stream() { runtime(device_).stream_destroy(handle_); }

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

void Event::synchronize() { check(device_, runtime(device_).event_synchronize(handle_)); }

}  // namespace trivium
