// The CUDA runtime as runtime.cpp calls it. Every function returns an error code, 0 for success.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#define TRIVIUM_GPU_NS cuda
#define TRIVIUM_GPU_NAME "cuda"
#define TRIVIUM_GPU_KIND ::trivium::DeviceKind::cuda

namespace trivium::cuda::gpu {

using Stream = cudaStream_t;
using Event = cudaEvent_t;
using Graph = cudaGraphExec_t;

inline constexpr int kOutOfMemory = cudaErrorMemoryAllocation;
inline const Stream kThreadStream = cudaStreamPerThread;

struct Blocks {
  uint32_t x, y, z;
};

// Also clears the error, unless it has broken the device for good.
inline const char* error_text(int code) {
  cudaGetLastError();
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

inline int set_device(int index) { return cudaSetDevice(index); }
inline int memory_info(size_t* free, size_t* total) { return cudaMemGetInfo(free, total); }
inline int allocate(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
inline int deallocate(void* memory) { return cudaFree(memory); }
inline int allocate_host(void** memory, size_t bytes) {
  return cudaHostAlloc(memory, bytes, cudaHostAllocPortable);
}
inline int deallocate_host(void* memory) { return cudaFreeHost(memory); }
// The device's default pool, which others in the process may use too, keeps at least `bytes` of what was
// given back.
inline int keep_in_pool(int index, uint64_t bytes) {
  cudaMemPool_t pool{};
  uint64_t kept = 0;
  int code = cudaDeviceGetDefaultMemPool(&pool, index);
  if (code == 0) code = cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept);
  if (code != 0 || kept >= bytes) return code;
  return cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &bytes);
}
inline int empty_pool(int index) {
  cudaMemPool_t pool{};
  const int code = cudaDeviceGetDefaultMemPool(&pool, index);
  return code ? code : cudaMemPoolTrimTo(pool, 0);
}
inline int allocate_in_order(void** memory, size_t bytes, Stream stream) {
  return cudaMallocAsync(memory, bytes, stream);
}
inline int deallocate_in_order(void* memory, Stream stream) { return cudaFreeAsync(memory, stream); }
inline int device_synchronize() { return cudaDeviceSynchronize(); }
inline int copy(void* to, const void* from, size_t bytes, Stream stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}
inline int fill(void* to, int byte, size_t bytes, Stream stream) {
  return cudaMemsetAsync(to, byte, bytes, stream);
}

inline int stream_create(Stream* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking); }
inline int stream_destroy(Stream stream) { return cudaStreamDestroy(stream); }
inline int stream_synchronize(Stream stream) { return cudaStreamSynchronize(stream); }
inline int stream_wait(Stream stream, Event event) { return cudaStreamWaitEvent(stream, event, 0); }
inline bool is_capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

inline int event_create(Event* event) { return cudaEventCreate(event); }
inline int event_destroy(Event event) { return cudaEventDestroy(event); }
inline int event_record(Event event, Stream stream) { return cudaEventRecord(event, stream); }
inline int event_synchronize(Event event) { return cudaEventSynchronize(event); }
inline int event_elapsed(float* ms, Event from, Event to) { return cudaEventElapsedTime(ms, from, to); }

inline int capture_begin(Stream stream) {
  return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}
inline int capture_end(Stream stream, Graph* graph) {
  cudaGraph_t recorded = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &recorded);
  if (error == cudaSuccess) error = cudaGraphInstantiate(graph, recorded, 0);
  if (recorded) cudaGraphDestroy(recorded);
  return error;
}
inline int graph_launch(Graph graph, Stream stream) { return cudaGraphLaunch(graph, stream); }
inline int graph_destroy(Graph graph) { return cudaGraphExecDestroy(graph); }

inline int launch(const void* kernel, Blocks grid, uint32_t block, void** arguments, size_t shared_bytes,
                  Stream stream) {
  constexpr size_t kGranted = 48 << 10;  // more must be asked for
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kGranted)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess)
    error =
        cudaLaunchKernel(kernel, dim3(grid.x, grid.y, grid.z), dim3(block), arguments, shared_bytes, stream);
  return error;
}

}  // namespace trivium::cuda::gpu
