// The devices of a GPU backend, found once a process: devices_cuda.cpp and hip/devices_hip.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace trivium::TRIVIUM_GPU_NS {

struct DeviceInfo {
  std::string name, arch;  // "NVIDIA H200", "sm_90"
  std::string refusal;     // why this build cannot use it; "" when it can
  int64_t shared_bytes = 0;
  int warp_size = 0, num_units = 0;
};

struct Devices {
  std::vector<DeviceInfo> list;
  std::string reason;  // why the list is empty
};

Devices find_devices();

}  // namespace trivium::TRIVIUM_GPU_NS
