// The exported symbol of libtrivium_cuda.so and libtrivium_hip.so.
#include "core/backend.h"
#if defined(TRIVIUM_GPU_HIP)
#include "hip/host_hip.h"
#else
#include "cuda/host_cuda.h"
#endif

namespace trivium::TRIVIUM_GPU_NS {

const Runtime& runtime_table();  // runtime.cpp
const Kernels& kernel_table();   // kernel_table.cu

}  // namespace trivium::TRIVIUM_GPU_NS

extern "C" [[gnu::visibility("default")]] const trivium_backend_v1* trivium_backend_get(uint32_t abi) {
  using namespace trivium;
  static const trivium_backend_v1 kBackend{
      .struct_size = sizeof(trivium_backend_v1),
      .abi = kBackendAbi,
      .build_id = TRIVIUM_BUILD_ID,
      .name = TRIVIUM_GPU_NAME,
      .kind = TRIVIUM_GPU_KIND,
      .last_error = guard_message,
      .runtime = &TRIVIUM_GPU_NS::runtime_table(),
      .kernels = &TRIVIUM_GPU_NS::kernel_table(),
  };
  return abi == kBackendAbi ? &kBackend : nullptr;
}
