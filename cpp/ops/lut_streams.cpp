#include "ops/lut_streams.h"

namespace trivium::lut {

Workspace::Workspace(Device device) : device_(device) {
  for (int i = 0; i < kStreams; ++i) {
    if (i == 0 && is_gpu(device.kind))
      streams_[i].emplace(device, Stream::Shared{});
    else
      streams_[i].emplace(device);
    events_[i].emplace(device);
  }
  begun_.emplace(device);
}

void Workspace::begin() {
  begun_->record(*streams_[0]);
  for (bool& entered : entered_) entered = false;
  entered_[0] = true;
}

void Workspace::enter(int stream) {
  if (entered_[stream]) return;
  if (trace) trace->push_back(concat(stream, " waits for the beginning"));
  streams_[stream]->wait(*begun_);
  entered_[stream] = true;
}

void Workspace::join(int waiting, int other) {
  if (trace) {
    trace->push_back(concat("record event ", other, " on ", other));
    trace->push_back(concat(waiting, " waits for event ", other));
  }
  events_[other]->record(*streams_[other]);
  streams_[waiting]->wait(*events_[other]);
  entered_[waiting] = true;
}

void Workspace::abandon() noexcept {
  try {
    for (int i = 1; i < kStreams; ++i) {
      events_[i]->record(*streams_[i]);
      streams_[0]->wait(*events_[i]);
    }
  } catch (const Error&) {  // the device is lost, and the error on its way says so
  }
}

Tensor Workspace::put(const Tensor& host) const {
  if (!is_gpu(device_.kind)) return host;
  Tensor there = buffer(host.shape(), host.dtype());
  StreamHandle* stream = streams_[0]->handle();
  if (const Status status =
          runtime(device_).copy(device_.index, stream, there.data(), host.data(), host.nbytes());
      status != Status::ok)
    throw_status(device_.kind, status);
  synchronize(device_, stream);
  return there;
}

Tensor Workspace::result(const Shape& shape) {
  constexpr int64_t kLarge = 1 << 19;  // elements; the allocator keeps smaller blocks itself
  const int64_t count = shape.numel();
  if (device_.kind != DeviceKind::cpu || count < kLarge) return buffer(shape, Dtype::f32);
  const bool fits = count <= spare_.numel() && spare_.numel() <= 2 * count;
  if (!fits || spare_.owner().use_count() != 1) {
    spare_ = {};                                                       // before the new one is allocated
    spare_ = Tensor::empty({count + count / 8}, Dtype::f32, device_);  // row-sparse results vary in size
  }
  // Copying the owner comes after what the last holder did with the memory: owners are counted by libstdc++
  // with acquire and release.
  return Tensor::wrap(spare_.data(), shape, Dtype::f32, device_, spare_.owner());
}

}  // namespace trivium::lut
