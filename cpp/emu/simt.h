// The SIMT emulator's core: runs one block at a time on an OS thread, each GPU thread as a fiber, and refuses
// what a GPU would leave undefined. A refusal is a DeviceError with the reason, the places and the seed.
// Nothing here knows the warp size at compile time. README.md says what this proves and what it does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>

namespace trivium::emu {

using Place = std::source_location;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// The calling GPU thread's indices, rewritten at each switch. Initial-exec: one instruction to reach.
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Dim3 threadIdx;
[[gnu::tls_model("initial-exec")]] extern constinit thread_local Dim3 blockIdx, blockDim, gridDim;

// 16-bit patterns for memory without a value: NaN as bf16, f16 and (twice) as f32, so that a use of it shows
// in the result, and distinct, so that a copy to the host can tell which it was.
inline constexpr uint16_t kUnwrittenGlobal = 0xfff7, kUnwrittenShared = 0xfffb, kPendingCopy = 0xfffd;
uint64_t seed();  // TRIVIUM_EMU_SEED, of every order that the emulator draws
void fill_pattern(void* memory, size_t bytes, uint16_t pattern);

// What is modelled of a device.
struct Model {
  const char* name;       // of the backend
  int warp_size;          // at most 64
  int64_t static_shared;  // bytes a block may declare
  int64_t total_shared;   // static and dynamic together
};

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  constexpr Grid(int64_t grid_x, int64_t grid_y = 1, int64_t grid_z = 1) : x(grid_x), y(grid_y), z(grid_z) {}
};

struct LaunchConfig {
  Grid grid;
  int64_t block;
  int64_t shared_bytes = 0;
  Place place = Place::current();
};

// Throws InvalidArgument for a configuration that no device would start. Called when it is queued.
void check_launch(const Model& model, const LaunchConfig& config);
// Runs the grid to completion; body(arguments) is one GPU thread. Called when the stream reaches it.
void run_grid(const Model& model, const LaunchConfig& config, int device, void (*body)(void*),
              void* arguments, size_t argument_bytes);

// --- called by GPU threads ---

// Every lane of `mask` calls this at one place; the last to arrive runs complete(payloads by lane, mask),
// then all go on.
using Complete = void (*)(void* const* payloads, uint64_t mask);
void warp_rendezvous(uint64_t mask, const char* what, void* payload, Complete complete, const Place& place);
void sync_block(const Place& place);

enum class Shuffle { index, exclusive_or, up, down };
uint64_t shuffle(Shuffle kind, uint64_t value, int argument, uint64_t mask, const char* what,
                 const Place& place);
void sync_warp(uint64_t mask, const Place& place);
uint64_t ballot(bool predicate, uint64_t mask, const char* what, const Place& place);

// One for each place that declares shared memory.
struct SharedSlot {
  const char* name;
  const char* file;
  unsigned line;
};
std::string describe(const SharedSlot& slot);
void* shared_memory(const SharedSlot& slot, size_t bytes);
void* dynamic_shared_memory(const SharedSlot& slot);

// Aligned, and in this block's shared memory or in a buffer of this device.
void load(void* to, const void* from, size_t bytes, const char* what, const Place& place);
void store(void* to, const void* from, size_t bytes, const char* what, const Place& place);

// Each returns the old value, widened; `bytes` is 4 or 8.
uint64_t atomic_add(void* p, size_t bytes, uint64_t v, const Place& place);
float atomic_add(float* p, float v, const Place& place);
uint64_t atomic_max(void* p, size_t bytes, bool is_signed, uint64_t v, const Place& place);
uint64_t atomic_cas(void* p, size_t bytes, uint64_t expected, uint64_t v, const Place& place);

void async_copy16(void* shared, const void* global, bool valid, const Place& place);
void async_commit(const Place& place);
void async_wait(int groups_under_way, const Place& place);

// Ends the kernel with a DeviceError: the sentence is completed by the kernel's place, the block and the
// seed.
[[noreturn]] void reject(std::string reason);
std::string describe(const Place& place);  // "rms_norm.cu:57"

}  // namespace trivium::emu
