#include "core/device.h"

#include "core/error.h"

namespace trivium {

const char* name_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::cpu:
      return "cpu";
    case DeviceKind::cuda:
      return "cuda";
    case DeviceKind::hip:
      return "hip";
    case DeviceKind::emu32:
      return "emu32";
    case DeviceKind::emu64:
      return "emu64";
    case DeviceKind::test:
      return "test";
  }
  return "unknown";
}

std::string to_string(Device device) {
  if (device.kind == DeviceKind::cpu) return "cpu";
  return concat(name_of(device.kind), ':', device.index);
}

std::ostream& operator<<(std::ostream& out, Device device) { return out << to_string(device); }

}  // namespace trivium
