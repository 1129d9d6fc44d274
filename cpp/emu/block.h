// The state of a block under way: its threads, warps and shared memory. Private to simt*.cpp.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emu/fiber.h"
#include "emu/memory.h"
#include "emu/shared.h"
#include "emu/simt.h"

namespace trivium::emu {

// What reject() throws; caught at the bottom of the thread's stack.
struct Rejection {
  std::string reason;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  bool valid;
  Place place;
};

struct Thread {
  Context context;
  uint32_t index = 0;
  int lane = 0, warp = 0;
  bool exited = false;
  const char* what = "";  // the call it waits in, and where
  Place place;
  std::vector<AsyncCopy> copies;  // under way; the first groups are closed
  std::vector<size_t> groups;     // copies in each closed group, oldest first
};

// A warp operation some of whose lanes have arrived.
struct Rendezvous {
  uint64_t mask = 0, arrived = 0;
  const char* what = "";
  Place place;
};

struct Warp {
  uint64_t epoch = 0;  // sync_warp calls since the last sync_block
  uint64_t lanes = 0, ready = 0, exited = 0, at_barrier = 0;
  std::vector<Rendezvous> open;
  std::array<void*, 64> payloads{};
  int first_lane = 0;  // lanes run from here, upwards or downwards
  bool downwards = false;
};

// splitmix64 (Steele, Lea & Flood 2014)
class Order {
 public:
  void seed(uint64_t seed) { state_ = seed; }
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_ = 0;
};

class Block {
 public:
  // Runs the block of `index` to its end; throws DeviceError when it was rejected.
  void run(const Model& model, const LaunchConfig& config, int device, Dim3 index, uint64_t seed,
           void (*body)(void*), Range arguments);

  Thread& current() { return *current_; }
  void rendezvous(uint64_t mask, const char* what, void* payload, Complete complete, const Place& place);
  void barrier(const Place& place);
  void warp_synced();  // the caller's warp has passed a sync_warp
  // A load or store that names its size: aligned, in shared memory or a buffer of this device.
  void access(const void* p, size_t bytes, Access access, const Where& where);
  bool on_own_stack(const void* p) const { return reinterpret_cast<uintptr_t>(p) - stack_ < stack_bytes_; }
  // A plain one off the stack: also the kernel's arguments and constants.
  void plain_access(const void* p, size_t bytes, Access access, const void* code);
  void begin_copy(const AsyncCopy& copy);
  void end_copy(const AsyncCopy& copy);
  uint64_t warp_lanes() const { return warps_[0].lanes; }
  SharedMemory& shared() { return shared_; }
  // As a rejection, but without an exception: the caller stands in code that none can pass through.
  [[noreturn]] void give_up(std::string reason);

 private:
  static void thread_main();
  void prepare(Dim3 index, uint64_t seed);
  void park(const char* what, const Place& place);
  [[noreturn]] void leave();
  void thread_exits();
  Thread* pick();
  void draw_order(Warp& warp);
  void switch_to(Thread* next);  // null: back to run()
  void check_no_conflict(const Warp& warp, uint64_t mask, const char* what, const Place& place) const;
  std::string deadlock() const;
  Thread& thread_of(int warp, uint64_t lanes);  // the lowest of them

  const Model* model_ = nullptr;
  const LaunchConfig* config_ = nullptr;
  int device_ = 0;
  void (*body_)(void*) = nullptr;
  Range arguments_;  // what body receives
  StackPool stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  size_t num_threads_ = 0, num_exited_ = 0, num_at_barrier_ = 0;
  Place barrier_place_;
  size_t warp_ = 0;  // whose lanes run
  Context host_;
  Context* switched_from_ = nullptr;
  Thread* current_ = nullptr;
  uintptr_t stack_ = 0;  // of the current thread
  size_t stack_bytes_ = 0;
  bool failed_ = false, watching_ = true;
  std::string reason_;
  Order order_;
  SharedMemory shared_;
  uint64_t epoch_ = 0;             // sync_block calls of all blocks run here
  std::array<Range, 8> recent_{};  // buffers found last
  size_t oldest_ = 0;

  Stamp stamp_;  // of the running thread
  void renew_stamp();
  bool in_buffer(const void* p, size_t bytes);
  [[noreturn]] void reject_outside(const void* p, size_t bytes, Access access, const Where& where) const;
};

// The block that this OS thread runs; null outside of kernels.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Block* t_block;
Block& running_block();

}  // namespace trivium::emu
