// The emulated backends: built once with 32 and once with 64 lanes a warp, for tests only.
#include "cuda/kernels.h"
#include "emu/runtime.h"

const trivium_backend_v1* trivium_backend_get([[maybe_unused]] uint32_t abi) {
  using namespace trivium;
  static const trivium_backend_v1 kBackend{
      .struct_size = sizeof(trivium_backend_v1),
      .abi = kBackendAbi,
      .build_id = TRIVIUM_BUILD_ID,
      .name = emu::kModel.name,
      .kind = TRIVIUM_EMU_WARP == 32 ? DeviceKind::emu32 : DeviceKind::emu64,
      .last_error = guard_message,
      .runtime = &emu::kRuntime,
      .kernels = &TRIVIUM_GPU_NS::kernel_table(),
  };
  return abi == kBackendAbi ? &kBackend : nullptr;
}
