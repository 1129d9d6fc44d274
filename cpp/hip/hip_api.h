// The functions of the HIP runtime that we use, found at run time in libamdhip64.so of ROCm 7, 6 or 5.
// Declared here so that building needs no ROCm. Only functions and values that mean the same in all three are
// listed: handles are pointers, devices are ints, and no struct of the runtime's is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct dim3 {
  uint32_t x, y, z;
};

namespace trivium::hip {

struct RawStream;  // ihipStream_t
struct RawEvent;
struct RawGraph;
struct RawGraphExec;
struct RawPool;  // ihipMemPoolHandle_t

inline constexpr int kHipSuccess = 0, kHipOutOfMemory = 2, kHipNotSupported = 801;
inline constexpr int kHipMemcpyDefault = 4;
inline constexpr unsigned kHipStreamNonBlocking = 1;
inline constexpr unsigned kHipHostMallocPortable = 1;
inline constexpr int kHipCaptureThreadLocal = 1;
inline constexpr int kHipPoolReleaseThreshold = 4;

struct HipApi {
  int (*hipGetDeviceCount)(int* count);
  int (*hipSetDevice)(int device);
  int (*hipDeviceGetName)(char* name, int size, int device);
  int (*hipDeviceGetPCIBusId)(char* id, int size, int device);
  int (*hipMemGetInfo)(size_t* free, size_t* total);
  int (*hipMalloc)(void** memory, size_t bytes);
  int (*hipFree)(void* memory);
  int (*hipDeviceSynchronize)();
  int (*hipHostMalloc)(void** memory, size_t bytes, unsigned flags);
  int (*hipHostFree)(void* memory);
  int (*hipMemcpyAsync)(void* to, const void* from, size_t bytes, int kind, RawStream* stream);
  int (*hipMemsetAsync)(void* to, int byte, size_t bytes, RawStream* stream);
  int (*hipStreamCreateWithFlags)(RawStream** stream, unsigned flags);
  int (*hipStreamDestroy)(RawStream* stream);
  int (*hipStreamSynchronize)(RawStream* stream);
  int (*hipStreamWaitEvent)(RawStream* stream, RawEvent* event, unsigned flags);
  int (*hipStreamIsCapturing)(RawStream* stream, int* status);
  int (*hipStreamBeginCapture)(RawStream* stream, int mode);
  int (*hipStreamEndCapture)(RawStream* stream, RawGraph** graph);
  int (*hipEventCreateWithFlags)(RawEvent** event, unsigned flags);
  int (*hipEventDestroy)(RawEvent* event);
  int (*hipEventRecord)(RawEvent* event, RawStream* stream);
  int (*hipEventSynchronize)(RawEvent* event);
  int (*hipEventElapsedTime)(float* ms, RawEvent* from, RawEvent* to);
  int (*hipGraphInstantiate)(RawGraphExec** exec, RawGraph* graph, void** error_node, char* log,
                             size_t log_size);
  int (*hipGraphDestroy)(RawGraph* graph);
  int (*hipGraphLaunch)(RawGraphExec* exec, RawStream* stream);
  int (*hipGraphExecDestroy)(RawGraphExec* exec);
  int (*hipLaunchKernel)(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                         RawStream* stream);
  int (*hipGetLastError)();
  const char* (*hipGetErrorString)(int code);
  void** (*registerFatBinary)(const void* data);
  void (*registerFunction)(void** modules, const void* host_function, char* device_function,
                           const char* device_name, unsigned thread_limit, void* tid, void* bid,
                           void* block_dim, void* grid_dim, int* warp_size);
  void (*registerVar)(void** modules, void* host, char* name, const char* device_name, int external,
                      size_t size, int constant, int global);
  // Null in runtimes that lack them.
  int (*hipMallocAsync)(void** memory, size_t bytes, RawStream* stream);
  int (*hipFreeAsync)(void* memory, RawStream* stream);
  int (*hipDeviceGetDefaultMemPool)(RawPool** pool, int device);
  int (*hipMemPoolGetAttribute)(RawPool* pool, int attribute, void* value);
  int (*hipMemPoolSetAttribute)(RawPool* pool, int attribute, void* value);
  int (*hipMemPoolTrimTo)(RawPool* pool, size_t bytes);
};

struct HipRuntime {
  HipApi api{};
  std::string reason;  // why there is none; "" when api can be called
};

// Opens the runtime on the first call and hands it the kernels of this library.
const HipRuntime& hip_runtime();

// The runtime where it is known to be there: after a device was found.
inline const HipApi& hip_api() { return hip_runtime().api; }

}  // namespace trivium::hip
