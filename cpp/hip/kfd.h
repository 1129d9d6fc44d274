// What the amdgpu kernel driver says about a device, read from its topology files: the runtime's own device
// properties are a struct that changed with ROCm 6.
#pragma once

#include <string>

namespace trivium {

inline constexpr const char* kKfdTopology = "/sys/class/kfd/kfd/topology/nodes";

struct KfdDevice {
  std::string arch;   // "gfx942"; "" when the device is not listed
  int num_units = 0;  // compute units
};

// `bus_id` as hipDeviceGetPCIBusId writes it: "0000:c1:00.0".
KfdDevice kfd_device(const std::string& topology, const std::string& bus_id);

}  // namespace trivium
