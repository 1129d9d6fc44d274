#include "emu/streams.h"

#include <algorithm>
#include <set>

#include "core/error.h"
#include "emu/block.h"
#include "emu/memory.h"
#include "emu/runtime.h"

namespace trivium::emu {

std::set<StreamHandle*>& all_streams() {
  static std::set<StreamHandle*> streams;
  return streams;
}

namespace {

bool runnable(const StreamHandle& s) {
  if (s.pending.empty()) return false;
  const Work& head = s.pending.front();
  return !head.wait || head.wait->reached >= head.ticket;
}

// A failed stream drops what is queued on it; its events count as reached, so that nobody waits for ever.
void fail(StreamHandle& s, const char* reason) {
  if (s.error.empty()) s.error = reason;
  for (const Work& work : s.pending)
    if (work.record) work.record->reached = std::max(work.record->reached, work.ticket);
  s.pending.clear();
}

void run_head(StreamHandle& s) {
  const Work work = std::move(s.pending.front());
  s.pending.pop_front();
  try {
    if (work.run) work.run();
  } catch (const std::exception& error) {
    fail(s, error.what());
  }
  if (work.record) work.record->reached = std::max(work.record->reached, work.ticket);
}

StreamHandle* recorder_of(const Work& wait) {
  for (StreamHandle* s : all_streams())
    for (const Work& work : s->pending)
      if (work.record == wait.wait && work.ticket == wait.ticket) return s;
  throw DeviceError("a stream waits for an event that no stream will record");
}

enum class Policy { only_what_is_needed, others_first, any_order };

// The stream whose head runs next on behalf of `target` (null: of nobody).
StreamHandle* next_stream(StreamHandle* target, Policy policy, Order& order) {
  std::vector<StreamHandle*> ready;
  for (StreamHandle* s : all_streams())
    if (runnable(*s)) ready.push_back(s);
  if (ready.empty()) return nullptr;
  if (target && policy == Policy::only_what_is_needed) {
    StreamHandle* s = target;
    while (!runnable(*s)) s = recorder_of(s->pending.front());
    return s;
  }
  if (policy == Policy::others_first && ready.size() > 1) std::erase(ready, target);
  return ready[order.next() % ready.size()];
}

template <class Done>
void run_until(StreamHandle* target, Done done) {
  static uint64_t calls = 0;
  Order order;
  order.seed(seed() + 0x51ed270b * ++calls);
  const auto policy = static_cast<Policy>(order.next() % 3);
  while (!done()) {
    StreamHandle* s = next_stream(target, policy, order);
    if (!s) throw DeviceError("a stream waits for an event that no stream will record");
    run_head(*s);
  }
}

}  // namespace

void queue(StreamHandle* stream, Work work) {
  if (stream->recording) {
    stream->recording->work.push_back(std::move(work));
    return;
  }
  if (work.on_queue) work.on_queue();
  stream->pending.push_back(std::move(work));
}

void drain(StreamHandle* stream) {
  run_until(stream, [&] { return stream->pending.empty(); });
  if (!stream->error.empty()) throw DeviceError(std::exchange(stream->error, {}));
}

void drain_until(const EventState& event, uint64_t ticket) {
  run_until(nullptr, [&] { return event.reached >= ticket; });
}

void drain_all() {
  run_until(nullptr, [] {
    return std::all_of(all_streams().begin(), all_streams().end(),
                       [](const StreamHandle* s) { return s->pending.empty(); });
  });
}

bool work_is_pending() {
  return std::any_of(all_streams().begin(), all_streams().end(),
                     [](const StreamHandle* s) { return !s->pending.empty(); });
}

bool graph_is_recorded() {
  return std::any_of(all_streams().begin(), all_streams().end(),
                     [](const StreamHandle* s) { return s->recording != nullptr; });
}

}  // namespace trivium::emu
