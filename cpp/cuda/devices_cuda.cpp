// The NVIDIA devices of this machine. TRIVIUM_GPU_ARCHS lists the kernels in this build (cuda/arch.h).
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <fstream>

#define TRIVIUM_GPU_NS cuda
#include "core/error.h"
#include "cuda/arch.h"
#include "cuda/devices.h"

namespace trivium::cuda {
namespace {

constexpr const char* kNeeded = "driver 580 or later (CUDA 13)";

// "535.183.01", as the loaded kernel module says; "" without one.
std::string driver_release() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string word;
  while (file >> word) {
    const size_t dot = word.find('.');
    if (dot != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos) return word;
  }
  return "";
}

std::string why_none(cudaError_t error) {
  const std::string release = driver_release();
  int cuda_version = 0;
  if (cudaDriverGetVersion(&cuda_version) != cudaSuccess) cuda_version = 0;
  if (error == cudaErrorInsufficientDriver && cuda_version == 0)
    return release.empty()
               ? concat("no NVIDIA driver is loaded (libcuda.so.1 was not found); this build needs ", kNeeded)
               : concat("driver ", release, " is loaded but its libcuda.so.1 was not found");
  if (error == cudaErrorInsufficientDriver) {
    if (!release.empty()) return concat("driver ", release, " is older than 580");
    return concat("the driver knows CUDA ", cuda_version / 1000, ".", cuda_version % 1000 / 10,
                  "; this build needs ", kNeeded);
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return concat(
        "the driver shows no NVIDIA GPU",
        visible ? concat(" (CUDA_VISIBLE_DEVICES is \"", printable(visible), "\")") : std::string());
  }
  return cudaGetErrorString(error);
}

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, index) != cudaSuccess) value = 0;
  return value;
}

DeviceInfo describe(int index) {
  DeviceInfo info;
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    info.refusal = concat("device cuda:", index, " does not answer: ", cudaGetErrorString(error));
    return info;
  }
  info.name = properties.name;
  info.arch = concat("sm_", properties.major, properties.minor);
  info.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  info.warp_size = properties.warpSize;
  info.num_units = properties.multiProcessorCount;
  if (!cuda_arch_served(TRIVIUM_GPU_ARCHS, properties.major, properties.minor))
    info.refusal = concat("device cuda:", index, " (", info.name, ") is ", info.arch,
                          "; this build has kernels for ", cuda_arch_names(TRIVIUM_GPU_ARCHS));
  return info;
}

}  // namespace

Devices find_devices() {
  Devices devices;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) count = 0;
  for (int i = 0; i < count; ++i) devices.list.push_back(describe(i));
  if (count == 0) devices.reason = why_none(error);
  cudaGetLastError();
  return devices;
}

}  // namespace trivium::cuda
