// Streams of the emulated device: queues whose work runs when someone waits for it.
#pragma once

#include "core/backend.h"
#include "emu/simt.h"

namespace trivium::emu {

// emu32 as sm_80 (a block may ask for 163 KiB of shared memory), emu64 as CDNA.
inline constexpr Model kModel = TRIVIUM_EMU_WARP == 32
                                    ? Model{"emu32", 32, int64_t{48} << 10, int64_t{160} << 10}
                                    : Model{"emu64", 64, int64_t{64} << 10, int64_t{64} << 10};

extern const Runtime kRuntime;

// A kernel with its arguments: body(arguments) is one GPU thread.
struct KernelCall {
  void (*body)(void*);
  void* arguments;
  size_t bytes;
  void (*release)(void*);
};
void enqueue_kernel(StreamHandle* stream, const LaunchConfig& config, const KernelCall& call);

}  // namespace trivium::emu

// How often the host has waited for the device so far; exported, for tests of what a step costs.
extern "C" int64_t trivium_emu_waits();
