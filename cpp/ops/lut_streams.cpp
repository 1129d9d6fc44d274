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

void Workspace::finish() {
  if (trace) trace->push_back("finish 0");
  streams_[0]->synchronize();
}

}  // namespace trivium::lut
