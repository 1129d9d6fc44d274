// Stands between the code that clang generates for kernels and the HIP runtime, so that the library loads on
// machines without ROCm and with any of ROCm 5 to 7. Registrations made while loading are kept and handed
// over when the runtime is opened, and nothing of the runtime is touched before a device is asked for.
#include <dlfcn.h>

#include <array>
#include <deque>
#include <vector>

#include "core/error.h"
#include "hip/hip_api.h"

namespace trivium::hip {
namespace {

struct Function {
  const void* host_function;
  char* device_function;
  const char* device_name;
  unsigned thread_limit;
};
struct Variable {
  void* host;
  char* name;
  const char* device_name;
  int external;
  size_t size;
  int constant, global;
};
struct FatBinary {
  const void* data;
  std::vector<Function> functions;
  std::vector<Variable> variables;
};

// A deque, so that handles stay valid; first used by the constructors of the kernels' files.
std::deque<FatBinary>& binaries() {
  static std::deque<FatBinary> all;
  return all;
}

constexpr std::array kNames{"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"};
constexpr const char* kRocmFolder = "/opt/rocm/lib/";

// A runtime already in the process (PyTorch brings its own) comes first: two of them do not go together.
void* open_library() {
  for (const char* name : kNames)
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) return library;
  for (const char* name : kNames)
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  for (const char* name : kNames)
    if (void* library = ::dlopen(concat(kRocmFolder, name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

template <class Fn>
void find(void* library, Fn*& entry, const char* name, std::string& missing) {
  entry = reinterpret_cast<Fn*>(::dlsym(library, name));
  if (!entry && missing.empty()) missing = name;
}

std::string load_memory_and_streams(void* library, HipApi& api) {
  std::string missing;
  find(library, api.hipGetDeviceCount, "hipGetDeviceCount", missing);
  find(library, api.hipSetDevice, "hipSetDevice", missing);
  find(library, api.hipDeviceGetName, "hipDeviceGetName", missing);
  find(library, api.hipDeviceGetPCIBusId, "hipDeviceGetPCIBusId", missing);
  find(library, api.hipMemGetInfo, "hipMemGetInfo", missing);
  find(library, api.hipMalloc, "hipMalloc", missing);
  find(library, api.hipFree, "hipFree", missing);
  find(library, api.hipDeviceSynchronize, "hipDeviceSynchronize", missing);
  find(library, api.hipHostMalloc, "hipHostMalloc", missing);
  find(library, api.hipHostFree, "hipHostFree", missing);
  find(library, api.hipMemcpyAsync, "hipMemcpyAsync", missing);
  find(library, api.hipMemsetAsync, "hipMemsetAsync", missing);
  find(library, api.hipStreamCreateWithFlags, "hipStreamCreateWithFlags", missing);
  find(library, api.hipStreamDestroy, "hipStreamDestroy", missing);
  find(library, api.hipStreamSynchronize, "hipStreamSynchronize", missing);
  find(library, api.hipStreamWaitEvent, "hipStreamWaitEvent", missing);
  return missing;
}

void load_pool(void* library, HipApi& api) {
  std::string not_needed;
  find(library, api.hipMallocAsync, "hipMallocAsync", not_needed);
  find(library, api.hipFreeAsync, "hipFreeAsync", not_needed);
  find(library, api.hipDeviceGetDefaultMemPool, "hipDeviceGetDefaultMemPool", not_needed);
  find(library, api.hipMemPoolGetAttribute, "hipMemPoolGetAttribute", not_needed);
  find(library, api.hipMemPoolSetAttribute, "hipMemPoolSetAttribute", not_needed);
  find(library, api.hipMemPoolTrimTo, "hipMemPoolTrimTo", not_needed);
}

std::string load_events_and_graphs(void* library, HipApi& api) {
  std::string missing;
  find(library, api.hipStreamIsCapturing, "hipStreamIsCapturing", missing);
  find(library, api.hipStreamBeginCapture, "hipStreamBeginCapture", missing);
  find(library, api.hipStreamEndCapture, "hipStreamEndCapture", missing);
  find(library, api.hipEventCreateWithFlags, "hipEventCreateWithFlags", missing);
  find(library, api.hipEventDestroy, "hipEventDestroy", missing);
  find(library, api.hipEventRecord, "hipEventRecord", missing);
  find(library, api.hipEventSynchronize, "hipEventSynchronize", missing);
  find(library, api.hipEventElapsedTime, "hipEventElapsedTime", missing);
  find(library, api.hipGraphInstantiate, "hipGraphInstantiate", missing);
  find(library, api.hipGraphDestroy, "hipGraphDestroy", missing);
  find(library, api.hipGraphLaunch, "hipGraphLaunch", missing);
  find(library, api.hipGraphExecDestroy, "hipGraphExecDestroy", missing);
  find(library, api.hipLaunchKernel, "hipLaunchKernel", missing);
  find(library, api.hipGetLastError, "hipGetLastError", missing);
  find(library, api.hipGetErrorString, "hipGetErrorString", missing);
  find(library, api.registerFatBinary, "__hipRegisterFatBinary", missing);
  find(library, api.registerFunction, "__hipRegisterFunction", missing);
  find(library, api.registerVar, "__hipRegisterVar", missing);
  return missing;
}

void register_kernels(const HipApi& api) {
  for (const FatBinary& binary : binaries()) {
    void** modules = api.registerFatBinary(binary.data);
    for (const Function& f : binary.functions)
      api.registerFunction(modules, f.host_function, f.device_function, f.device_name, f.thread_limit,
                           nullptr, nullptr, nullptr, nullptr, nullptr);
    for (const Variable& v : binary.variables)
      api.registerVar(modules, v.host, v.name, v.device_name, v.external, v.size, v.constant, v.global);
  }
}

HipRuntime open_runtime() {
  HipRuntime runtime;
  void* library = open_library();
  if (!library) {
    runtime.reason =
        "no ROCm runtime: libamdhip64.so.7, .6 or .5 was not found by the loader or in /opt/rocm/lib";
    return runtime;
  }
  std::string missing = load_memory_and_streams(library, runtime.api);
  if (missing.empty()) missing = load_events_and_graphs(library, runtime.api);
  load_pool(library, runtime.api);
  if (!missing.empty()) {
    Dl_info info{};
    const bool known = ::dladdr(::dlsym(library, "hipGetDeviceCount"), &info) && info.dli_fname;
    runtime.reason = concat(known ? info.dli_fname : "libamdhip64.so", " has no function ", missing,
                            "; ROCm 5.2 or later is needed");
    return runtime;
  }
  register_kernels(runtime.api);
  return runtime;
}

}  // namespace

const HipRuntime& hip_runtime() {
  static const HipRuntime runtime = open_runtime();
  return runtime;
}

}  // namespace trivium::hip

// What the host side of every kernel's file calls, and its signatures, are clang's.
extern "C" {

void** __hipRegisterFatBinary(const void* data) {
  auto& all = trivium::hip::binaries();
  all.push_back({data, {}, {}});
  return reinterpret_cast<void**>(&all.back());
}

void __hipRegisterFunction(void** modules, const void* host_function, char* device_function,
                           const char* device_name, unsigned thread_limit, void*, void*, void*, void*, int*) {
  reinterpret_cast<trivium::hip::FatBinary*>(modules)->functions.push_back(
      {host_function, device_function, device_name, thread_limit});
}

void __hipRegisterVar(void** modules, void* host, char* name, const char* device_name, int external,
                      size_t size, int constant, int global) {
  reinterpret_cast<trivium::hip::FatBinary*>(modules)->variables.push_back(
      {host, name, device_name, external, size, constant, global});
}

// Runs while the process ends, after the runtime may have been torn down: the system takes everything back.
void __hipUnregisterFatBinary(void**) {}

// The stubs of kernels refer to these two; launches go through launch_kernel(), so that neither is ever
// called.
int __hipPopCallConfiguration(dim3*, dim3*, size_t*, void**) { return 1; }

int hipLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                    void* stream) {
  return trivium::hip::hip_api().hipLaunchKernel(kernel, grid, block, arguments, shared_bytes,
                                                 static_cast<trivium::hip::RawStream*>(stream));
}
}
