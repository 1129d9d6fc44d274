#include "ops/lut_streams.h"

namespace trivium::lut {

Workspace::Workspace(Device device) : device_(device) {
  for (int i = 0; i < kStreams; ++i) {
    streams_[i].emplace(device);
    events_[i].emplace(device);
  }
}

StreamHandle* Workspace::handle(int stream) const { return streams_[stream]->handle(); }

void Workspace::join(int waiting, int other) {
  if (trace) {
    trace->push_back(concat("record event ", other, " on ", other));
    trace->push_back(concat(waiting, " waits for event ", other));
  }
  events_[other]->record(*streams_[other]);
  streams_[waiting]->wait(*events_[other]);
}

void Workspace::hold_others() {
  events_[0]->record(*streams_[0]);
  for (int i = 1; i < kStreams; ++i) streams_[i]->wait(*events_[0]);
}

Tensor Workspace::result(const Shape& shape) {
  constexpr int64_t kLarge = 1 << 19;  // elements; the allocator keeps smaller blocks itself
  const int64_t count = shape.numel();
  // On a device, work of others that was queued before they let go may still read it.
  if (device_.kind != DeviceKind::cpu || count < kLarge) return Tensor::empty(shape, Dtype::f32, device_);
  const bool fits = count <= spare_.numel() && spare_.numel() <= 2 * count;
  if (!fits || spare_.owner().use_count() != 1) {
    spare_ = {};                                                       // before the new one is allocated
    spare_ = Tensor::empty({count + count / 8}, Dtype::f32, device_);  // row-sparse results vary in size
  }
  // Copying the owner comes after what the last holder did with the memory: owners are counted by libstdc++
  // with acquire and release.
  return Tensor::wrap(spare_.data(), shape, Dtype::f32, device_, spare_.owner());
}

void Workspace::finish() {
  if (trace) trace->push_back("finish 0");
  streams_[0]->synchronize();
}

}  // namespace trivium::lut
