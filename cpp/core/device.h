// Device: which backend, and which of its devices.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>

namespace trivium {

// The values are part of the backend ABI: append, never renumber.
enum class DeviceKind : int32_t { cpu = 0, cuda = 1, hip = 2, emu32 = 3, emu64 = 4, test = 5 };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

inline bool is_gpu(DeviceKind kind) { return kind != DeviceKind::cpu && kind != DeviceKind::test; }
const char* name_of(DeviceKind kind);  // "cpu", "cuda", "hip", ...
std::string to_string(Device device);  // "cpu", "cuda:1"
std::ostream& operator<<(std::ostream& out, Device device);

// "auto", "cpu", "cuda", "cuda:1", "hip:0". "auto" takes the first GPU that loads, else the CPU. An
// explicit device that cannot be had is a DeviceError that says why; nothing falls back silently.
Device parse_device(std::string_view text);

}  // namespace trivium
