// Queues of the emulated device. Work runs only when someone waits for it, in a seeded order over the streams
// that respects their events, so that a missing wait or synchronise shows. Callers hold the runtime's lock.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "emu/simt.h"

namespace trivium::emu {

// The last recorded ticket of an event and the last one that the device has reached.
struct EventState {
  uint64_t recorded = 0, reached = 0;
};

struct Work {
  std::function<void()> run;
  std::function<void()> on_queue = nullptr;  // done by the host when the work is queued
  std::shared_ptr<EventState> record = nullptr, wait = nullptr;
  uint64_t ticket = 0;
};

void queue(StreamHandle* stream, Work work);  // or into the graph that the stream records
void drain(StreamHandle* stream);             // runs until the stream is empty; throws its error
void drain_until(const EventState& event, uint64_t ticket);
void drain_all();          // errors stay with their streams
bool work_is_pending();    // on any stream
bool graph_is_recorded();  // by any stream

}  // namespace trivium::emu

namespace trivium {

struct StreamHandle {
  int device;
  std::deque<emu::Work> pending;
  std::string error;  // of work that failed; reported once, at the next wait
  GraphHandle* recording = nullptr;
};

struct EventHandle {
  std::shared_ptr<emu::EventState> state = std::make_shared<emu::EventState>();
};

struct GraphHandle {
  int device;
  std::vector<emu::Work> work;
};

}  // namespace trivium
