// Warp operations, shared memory and asynchronous copies of the emulator.
#include <algorithm>
#include <array>
#include <cstring>

#include "core/error.h"
#include "emu/block.h"

namespace trivium::emu {

namespace {

struct ShufflePayload {
  uint64_t value, result;
  int argument;
  Shuffle kind;
  const char* what;
  Place place;
};

int source_lane(const ShufflePayload& p, int lane) {
  switch (p.kind) {
    case Shuffle::index:
      return p.argument;
    case Shuffle::exclusive_or:
      return lane ^ p.argument;
    case Shuffle::up:
      return lane - p.argument;
    default:
      return lane + p.argument;
  }
}

void complete_shuffle(void* const* payloads, uint64_t mask) {
  for (uint64_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctzll(rest);
    auto& p = *static_cast<ShufflePayload*>(payloads[lane]);
    const int from = source_lane(p, lane);
    const bool outside = from < 0 || from >= 64 || !(running_block().warp_lanes() >> from & 1);
    if (!outside && !(mask >> from & 1))
      reject(concat("lane ", lane, " reads lane ", from, " in ", p.what, " at ", describe(p.place),
                    ", which is not in the mask"));
    p.result = static_cast<const ShufflePayload*>(payloads[outside ? lane : from])->value;
  }
}

struct BallotPayload {
  bool predicate;
  uint64_t result;
};

void complete_ballot(void* const* payloads, uint64_t mask) {
  uint64_t votes = 0;
  for (uint64_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctzll(rest);
    if (static_cast<const BallotPayload*>(payloads[lane])->predicate) votes |= uint64_t{1} << lane;
  }
  for (uint64_t rest = mask; rest; rest &= rest - 1)
    static_cast<BallotPayload*>(payloads[__builtin_ctzll(rest)])->result = votes;
}

}  // namespace

void warp_rendezvous(uint64_t mask, const char* what, void* payload, Complete complete, const Place& place) {
  running_block().rendezvous(mask, what, payload, complete, place);
}

void sync_warp(uint64_t mask, const Place& place) {
  running_block().rendezvous(
      mask, "sync_warp", nullptr, [](void* const*, uint64_t) { running_block().warp_synced(); }, place);
}

void sync_block(const Place& place) { running_block().barrier(place); }

uint64_t shuffle(Shuffle kind, uint64_t value, int argument, uint64_t mask, const char* what,
                 const Place& place) {
  ShufflePayload payload{value, 0, argument, kind, what, place};
  running_block().rendezvous(mask, what, &payload, complete_shuffle, place);
  return payload.result;
}

uint64_t ballot(bool predicate, uint64_t mask, const char* what, const Place& place) {
  BallotPayload payload{predicate, 0};
  running_block().rendezvous(mask, what, &payload, complete_ballot, place);
  return payload.result;
}

void fill_pattern(void* memory, size_t bytes, uint16_t pattern) {
  std::array<uint16_t, 512> chunk;
  chunk.fill(pattern);
  auto* to = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i < bytes; i += sizeof chunk)
    std::memcpy(to + i, chunk.data(), std::min(sizeof chunk, bytes - i));
}

void* shared_memory(const SharedSlot& slot, size_t bytes) {
  return running_block().shared().array(slot, bytes, false);
}
void* dynamic_shared_memory(const SharedSlot& slot) { return running_block().shared().array(slot, 0, true); }

// --- asynchronous copies: the data lands at the wait ---

void async_copy16(void* shared, const void* global, bool valid, const Place& place) {
  Block& block = running_block();
  block.begin_copy({shared, global, valid, place});
}

void async_commit(const Place&) {
  Thread& me = running_block().current();
  size_t closed = 0;
  for (const size_t n : me.groups) closed += n;
  me.groups.push_back(me.copies.size() - closed);
}

void async_wait(int groups_under_way, const Place&) {
  Block& block = running_block();
  Thread& me = block.current();
  while (me.groups.size() > static_cast<size_t>(groups_under_way)) {
    const auto landed = static_cast<std::ptrdiff_t>(me.groups[0]);
    for (std::ptrdiff_t i = 0; i < landed; ++i) block.end_copy(me.copies[static_cast<size_t>(i)]);
    me.copies.erase(me.copies.begin(), me.copies.begin() + landed);
    me.groups.erase(me.groups.begin());
  }
}

// --- loads, stores and atomics that name their size ---

void load(void* to, const void* from, size_t bytes, const char* what, const Place& place) {
  running_block().access(from, bytes, Access::read, {.what = what, .place = &place});
  std::memcpy(to, from, bytes);
}

void store(void* to, const void* from, size_t bytes, const char* what, const Place& place) {
  running_block().access(to, bytes, Access::write, {.what = what, .place = &place});
  std::memcpy(to, from, bytes);
}

namespace {

// Replaces *p by change(*p) and returns what it was.
template <class T, class Change>
T atomically(void* p, const char* what, const Place& place, Change change) {
  running_block().access(p, sizeof(T), Access::atomic, {.what = what, .place = &place});
  T* const at = static_cast<T*>(p);
  T old, wanted;
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  do {
    wanted = change(old);
  } while (!__atomic_compare_exchange(at, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

template <class Change>
uint64_t atomically(void* p, size_t bytes, const char* what, const Place& place, Change change) {
  if (bytes == 8) return atomically<uint64_t>(p, what, place, change);
  return atomically<uint32_t>(p, what, place, [&](uint32_t v) { return static_cast<uint32_t>(change(v)); });
}

}  // namespace

uint64_t atomic_add(void* p, size_t bytes, uint64_t v, const Place& place) {
  return atomically(p, bytes, "atomic_add", place, [=](uint64_t old) { return old + v; });
}

float atomic_add(float* p, float v, const Place& place) {
  return atomically<float>(p, "atomic_add", place, [=](float old) { return old + v; });
}

uint64_t atomic_max(void* p, size_t bytes, bool is_signed, uint64_t v, const Place& place) {
  return atomically(p, bytes, "atomic_max", place, [=](uint64_t old) {
    const bool signed_32 = is_signed && bytes == 4;
    const auto a = static_cast<int64_t>(signed_32 ? static_cast<uint64_t>(static_cast<int32_t>(old)) : old);
    const auto b = static_cast<int64_t>(signed_32 ? static_cast<uint64_t>(static_cast<int32_t>(v)) : v);
    return (is_signed ? a < b : old < v) ? v : old;
  });
}

uint64_t atomic_cas(void* p, size_t bytes, uint64_t expected, uint64_t v, const Place& place) {
  return atomically(p, bytes, "atomic_cas", place, [=](uint64_t old) { return old == expected ? v : old; });
}

}  // namespace trivium::emu
