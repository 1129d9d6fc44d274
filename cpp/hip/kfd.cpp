#include "hip/kfd.h"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "cuda/arch.h"

namespace trivium {
namespace {

using Properties = std::map<std::string, uint64_t>;

// Lines of "name value".
Properties read_properties(const std::filesystem::path& path) {
  Properties properties;
  std::ifstream file(path);
  std::string name;
  for (uint64_t value = 0; file >> name >> value;) properties[name] = value;
  return properties;
}

// The low 16 bits of a node's location_id are bus << 8 | device << 3 | function.
bool is_at(Properties& node, const std::string& bus_id) {
  unsigned domain = 0, bus = 0, device = 0, function = 0;
  if (std::sscanf(bus_id.c_str(), "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) return false;
  const uint64_t location = bus << 8 | device << 3 | function;
  const bool same_domain = !node.contains("domain") || node["domain"] == domain;
  return same_domain && (node["location_id"] & 0xffff) == location;
}

}  // namespace

KfdDevice kfd_device(const std::string& topology, const std::string& bus_id) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(topology, error)) {
    Properties node = read_properties(entry.path() / "properties");
    if (node["simd_count"] == 0 || !is_at(node, bus_id)) continue;
    KfdDevice device;
    device.arch = hip_arch_name(static_cast<int>(node["gfx_target_version"]));
    const uint64_t per_unit = node["simd_per_cu"] ? node["simd_per_cu"] : 4;
    device.num_units = static_cast<int>(node["simd_count"] / per_unit);
    return device;
  }
  return {};
}

}  // namespace trivium
