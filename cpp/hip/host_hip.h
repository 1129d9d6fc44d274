// The HIP runtime as cuda/runtime.cpp calls it. Every function returns an error code, 0 for success.
#pragma once

#include "hip/hip_api.h"

#define TRIVIUM_GPU_NS hip
#define TRIVIUM_GPU_NAME "hip"
#define TRIVIUM_GPU_KIND ::trivium::DeviceKind::hip

namespace trivium::hip::gpu {

using Stream = RawStream*;
using Event = RawEvent*;
using Graph = RawGraphExec*;

inline constexpr int kOutOfMemory = kHipOutOfMemory;
inline const Stream kThreadStream = reinterpret_cast<Stream>(2);  // hipStreamPerThread

struct Blocks {
  uint32_t x, y, z;
};

inline const char* error_text(int code) {
  hip_api().hipGetLastError();
  return hip_api().hipGetErrorString(code);
}

inline int set_device(int index) { return hip_api().hipSetDevice(index); }
inline int memory_info(size_t* free, size_t* total) { return hip_api().hipMemGetInfo(free, total); }
inline int allocate(void** memory, size_t bytes) { return hip_api().hipMalloc(memory, bytes); }
inline int deallocate(void* memory) { return hip_api().hipFree(memory); }
inline int allocate_host(void** memory, size_t bytes) {
  return hip_api().hipHostMalloc(memory, bytes, kHipHostMallocPortable);
}
inline int deallocate_host(void* memory) { return hip_api().hipHostFree(memory); }
// Early runtimes lack the pool: has_pool() of cuda/runtime.cpp asks this first.
inline int keep_in_pool(int index, uint64_t bytes) {
  const HipApi& api = hip_api();
  if (!api.hipMallocAsync || !api.hipFreeAsync || !api.hipDeviceGetDefaultMemPool ||
      !api.hipMemPoolGetAttribute || !api.hipMemPoolSetAttribute || !api.hipMemPoolTrimTo)
    return kHipNotSupported;
  RawPool* pool = nullptr;
  uint64_t kept = 0;
  int code = api.hipDeviceGetDefaultMemPool(&pool, index);
  if (code == 0) code = api.hipMemPoolGetAttribute(pool, kHipPoolReleaseThreshold, &kept);
  if (code != 0 || kept >= bytes) return code;
  return api.hipMemPoolSetAttribute(pool, kHipPoolReleaseThreshold, &bytes);
}
inline int empty_pool(int index) {
  if (!hip_api().hipDeviceGetDefaultMemPool || !hip_api().hipMemPoolTrimTo) return kHipNotSupported;
  RawPool* pool = nullptr;
  const int code = hip_api().hipDeviceGetDefaultMemPool(&pool, index);
  return code ? code : hip_api().hipMemPoolTrimTo(pool, 0);
}
inline int allocate_in_order(void** memory, size_t bytes, Stream stream) {
  return hip_api().hipMallocAsync(memory, bytes, stream);
}
inline int deallocate_in_order(void* memory, Stream stream) { return hip_api().hipFreeAsync(memory, stream); }
inline int device_synchronize() { return hip_api().hipDeviceSynchronize(); }
inline int copy(void* to, const void* from, size_t bytes, Stream stream) {
  return hip_api().hipMemcpyAsync(to, from, bytes, kHipMemcpyDefault, stream);
}
inline int fill(void* to, int byte, size_t bytes, Stream stream) {
  return hip_api().hipMemsetAsync(to, byte, bytes, stream);
}

inline int stream_create(Stream* stream) {
  return hip_api().hipStreamCreateWithFlags(stream, kHipStreamNonBlocking);
}
inline int stream_destroy(Stream stream) { return hip_api().hipStreamDestroy(stream); }
inline int stream_synchronize(Stream stream) { return hip_api().hipStreamSynchronize(stream); }
inline int stream_wait(Stream stream, Event event) { return hip_api().hipStreamWaitEvent(stream, event, 0); }
inline bool is_capturing(Stream stream) {
  int status = 0;
  return hip_api().hipStreamIsCapturing(stream, &status) == kHipSuccess && status != 0;
}

inline int event_create(Event* event) { return hip_api().hipEventCreateWithFlags(event, 0); }
inline int event_destroy(Event event) { return hip_api().hipEventDestroy(event); }
inline int event_record(Event event, Stream stream) { return hip_api().hipEventRecord(event, stream); }
inline int event_synchronize(Event event) { return hip_api().hipEventSynchronize(event); }
inline int event_elapsed(float* ms, Event from, Event to) {
  return hip_api().hipEventElapsedTime(ms, from, to);
}

inline int capture_begin(Stream stream) {
  return hip_api().hipStreamBeginCapture(stream, kHipCaptureThreadLocal);
}
inline int capture_end(Stream stream, Graph* graph) {
  RawGraph* recorded = nullptr;
  int error = hip_api().hipStreamEndCapture(stream, &recorded);
  if (error == kHipSuccess) error = hip_api().hipGraphInstantiate(graph, recorded, nullptr, nullptr, 0);
  if (recorded) hip_api().hipGraphDestroy(recorded);
  return error;
}
inline int graph_launch(Graph graph, Stream stream) { return hip_api().hipGraphLaunch(graph, stream); }
inline int graph_destroy(Graph graph) { return hip_api().hipGraphExecDestroy(graph); }

inline int launch(const void* kernel, Blocks grid, uint32_t block, void** arguments, size_t shared_bytes,
                  Stream stream) {
  return hip_api().hipLaunchKernel(kernel, {grid.x, grid.y, grid.z}, {block, 1, 1}, arguments, shared_bytes,
                                   stream);
}

}  // namespace trivium::hip::gpu
