// The AMD devices of this machine. TRIVIUM_GPU_ARCHS lists the kernels in this build.
#include <cstdlib>

#define TRIVIUM_GPU_NS hip
#include "core/error.h"
#include "cuda/arch.h"
#include "cuda/devices.h"
#include "hip/hip_api.h"
#include "hip/kfd.h"

namespace trivium::hip {
namespace {

constexpr int64_t kSharedBytes = 64 << 10;  // of every target

DeviceInfo describe(int index) {
  DeviceInfo info;
  char name[256] = "", bus_id[64] = "";
  hip_api().hipDeviceGetName(name, sizeof name, index);
  hip_api().hipDeviceGetPCIBusId(bus_id, sizeof bus_id, index);
  const char* topology = std::getenv("TRIVIUM_KFD_TOPOLOGY");  // for tests
  const KfdDevice kfd = kfd_device(topology ? topology : kKfdTopology, bus_id);
  info.name = name;
  info.arch = kfd.arch;
  info.num_units = kfd.num_units;
  info.warp_size = kfd.arch.starts_with("gfx9") ? 64 : 32;
  info.shared_bytes = kSharedBytes;
  const std::string what = concat("device hip:", index, " (", info.name, ")");
  if (kfd.arch.empty())
    info.refusal =
        concat(what, " at ", bus_id, " is not in ", kKfdTopology, ", so that its architecture is unknown");
  else if (!hip_arch_served(TRIVIUM_GPU_ARCHS, kfd.arch))
    info.refusal = concat(what, " is ", kfd.arch, "; this build has kernels for ", TRIVIUM_GPU_ARCHS);
  return info;
}

}  // namespace

Devices find_devices() {
  Devices devices;
  const HipRuntime& runtime = hip_runtime();
  if (!runtime.reason.empty()) {
    devices.reason = runtime.reason;
    return devices;
  }
  int count = 0;
  const int error = runtime.api.hipGetDeviceCount(&count);
  if (error != kHipSuccess) count = 0;
  for (int i = 0; i < count; ++i) devices.list.push_back(describe(i));
  if (count == 0)
    devices.reason = concat("the ROCm runtime shows no AMD GPU",
                            error ? concat(": ", runtime.api.hipGetErrorString(error)) : "");
  runtime.api.hipGetLastError();
  return devices;
}

}  // namespace trivium::hip
