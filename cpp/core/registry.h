// Finds and loads backends. cpu is linked in; cuda and hip are shared libraries opened when a device is
// first asked for, from TRIVIUM_BACKEND_PATH, then from the folder backends/ beside libtrivium.so; never from
// the working directory. A backend that cannot load keeps its reason for `doctor`.
#pragma once

#include <string>
#include <vector>

#include "core/backend.h"

namespace trivium {

// The backend of a kind, loading it if need be; DeviceError with the reason when it cannot be had.
const trivium_backend_v1& backend(DeviceKind kind);
inline const Runtime& runtime(Device device) { return *backend(device.kind).runtime; }
inline const Kernels& kernels(Device device) { return *backend(device.kind).kernels; }

// Loads one backend library file and registers it; DeviceError says why not (missing file, missing symbol,
// wrong ABI, wrong build id).
const trivium_backend_v1& load_backend_file(const std::string& path);

struct BackendReport {
  std::string name;  // "cpu", "cuda", "hip"
  bool loaded = false;
  std::string file;    // "" when linked in or not found
  std::string reason;  // why it is not loaded or has no device
  std::vector<DeviceProperties> devices;
  std::vector<std::string> refusals;  // of each device: why this build cannot use it; "" when it can
};

std::vector<BackendReport> backend_report();  // for `doctor`; tries to load everything
DeviceProperties device_properties(Device device);
int device_count(DeviceKind kind);  // 0 when the backend cannot be had; never throws
const char* build_id();             // "0.1.0+<commit>"
std::string cpu_level();            // "avx512-bf16", "avx2" or "scalar"; TRIVIUM_CPU_LEVEL forces one
bool cpu_has_bf16_dot();            // whether bfloat16 is the faster precision here
int cpu_screen_bits();              // of an element of ops::make_row_screen's copies: 6 or 8

// The stream of a GPU that calls without one share: each such call waits for its work, but LUT layers leave
// theirs queued. It lives as long as the process.
StreamHandle* default_stream(Device device);
void synchronize(Device device, StreamHandle* stream);

// The one way ops call a kernel: table entry, NotImplemented when it is empty, the backend's error otherwise.
// With a null stream the call returns when the kernel has finished.
template <class Args>
void call_kernel(Device device, Status (*Kernels::*entry)(StreamHandle*, const Args*), const char* name,
                 StreamHandle* stream, const Args& args) {
  const auto fn = kernels(device).*entry;
  if (!fn) [[unlikely]]
    throw NotImplemented(concat(name, " on ", name_of(device.kind)));
  const bool wait = !stream && is_gpu(device.kind);
  if (wait) stream = default_stream(device);
  if (const Status status = fn(stream, &args); status != Status::ok) [[unlikely]]
    throw_status(device.kind, status);
  if (wait) synchronize(device, stream);
}

}  // namespace trivium
