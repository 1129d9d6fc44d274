// A HIP runtime without a device, for testing libtrivium_hip.so: memory is the host's, work is done at once,
// and launches are written down instead of run. Signatures are those of ROCm's libamdhip64.
#include "fake_hip.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

struct dim3 {
  uint32_t x, y, z;
};

namespace {

FakeHip g_fake;
std::map<const void*, std::string> g_names;

int take_error() { return std::exchange(g_fake.next_error, 0); }

int make(void** handle, int& live) {
  *handle = &live;
  ++live;
  return 0;
}

int drop(int& live) {
  --live;
  return 0;
}

}  // namespace

extern "C" {

FakeHip* fake_hip() { return &g_fake; }

int hipGetDeviceCount(int* count) {
  *count = g_fake.num_devices;
  return g_fake.num_devices ? 0 : 100;
}
int hipSetDevice(int device) {
  g_fake.current_device = device;
  return 0;
}
int hipDeviceGetName(char* name, int size, int device) {
  std::strncpy(name, device == 0 ? "Fake Instinct" : "Fake Radeon", static_cast<size_t>(size));
  return 0;
}
int hipDeviceGetPCIBusId(char* id, int size, int device) {
  std::strncpy(id, device == 0 ? "0000:01:00.0" : "0000:02:00.0", static_cast<size_t>(size));
  return 0;
}
int hipMemGetInfo(size_t* free, size_t* total) {
  *free = static_cast<size_t>(g_fake.free_bytes);
  *total = size_t{1} << 31;
  return 0;
}
int hipMalloc(void** memory, size_t bytes) {
  if (static_cast<int64_t>(bytes) > g_fake.free_bytes) return 2;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  ++g_fake.live_memory;
  return 0;
}
int hipFree(void* memory) {
  std::free(memory);
  return drop(g_fake.live_memory);
}
int hipMallocAsync(void** memory, size_t bytes, void*) {
  if (!g_fake.has_pools) return 801;  // hipErrorNotSupported
  const int code = hipMalloc(memory, bytes);
  g_fake.in_order_memory += code == 0;
  return code;
}
int hipFreeAsync(void* memory, void*) {
  drop(g_fake.in_order_memory);
  return hipFree(memory);
}
int hipMemPoolGetAttribute(void* pool, int attribute, void* value) {
  if (pool != &g_fake || attribute != 4) return 1;
  std::memcpy(value, &g_fake.pool_keeps, sizeof g_fake.pool_keeps);
  return 0;
}
int hipMemPoolTrimTo(void*, size_t bytes) {
  g_fake.free_bytes += g_fake.in_pool;
  g_fake.in_pool = 0;
  return bytes == 0 ? 0 : 1;
}
int hipDeviceGetDefaultMemPool(void** pool, int) {
  *pool = &g_fake;
  return 0;
}
int hipMemPoolSetAttribute(void* pool, int attribute, void* value) {
  if (pool != &g_fake || attribute != 4) return 1;  // hipMemPoolAttrReleaseThreshold
  std::memcpy(&g_fake.pool_keeps, value, sizeof g_fake.pool_keeps);
  return 0;
}
int hipDeviceSynchronize() {
  ++g_fake.synchronised;
  return take_error();
}
int hipHostMalloc(void** memory, size_t bytes, unsigned flags) {
  return flags == 1 ? hipMalloc(memory, bytes) : 1;
}
int hipHostFree(void* memory) { return hipFree(memory); }
int hipMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void*) {
  if (kind != 4) return 1;
  if (const int error = take_error()) return error;
  std::memcpy(to, from, bytes);
  return 0;
}
int hipMemsetAsync(void* to, int byte, size_t bytes, void*) {
  std::memset(to, byte, bytes);
  return 0;
}
int hipStreamCreateWithFlags(void** stream, unsigned flags) {
  return flags == 1 ? make(stream, g_fake.live_streams) : 1;
}
int hipStreamDestroy(void*) { return drop(g_fake.live_streams); }
int hipStreamSynchronize(void*) {
  ++g_fake.synchronised;
  return take_error();
}
int hipStreamWaitEvent(void*, void*, unsigned) { return 0; }
int hipStreamIsCapturing(void*, int* status) {
  *status = g_fake.capturing;
  return 0;
}
int hipStreamBeginCapture(void*, int mode) {
  g_fake.capturing = true;
  return mode == 1 ? 0 : 1;
}
int hipStreamEndCapture(void*, void** graph) {
  g_fake.capturing = false;
  return make(graph, g_fake.live_graphs);
}
int hipEventCreateWithFlags(void** event, unsigned) { return make(event, g_fake.live_events); }
int hipEventDestroy(void*) { return drop(g_fake.live_events); }
int hipEventRecord(void*, void*) { return 0; }
int hipEventSynchronize(void*) { return 0; }
int hipEventElapsedTime(float* ms, void*, void*) {
  *ms = 1.5f;
  return 0;
}
int hipGraphInstantiate(void** exec, void*, void**, char*, size_t) { return make(exec, g_fake.live_graphs); }
int hipGraphDestroy(void*) { return drop(g_fake.live_graphs); }
int hipGraphLaunch(void*, void*) { return 0; }
#if !defined(FAKE_INCOMPLETE)
int hipGraphExecDestroy(void*) { return drop(g_fake.live_graphs); }
#endif
int hipLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared_bytes, void*) {
  if (!g_names.contains(kernel)) return 98;  // hipErrorInvalidDeviceFunction
  g_fake.launches.push_back(
      {g_names[kernel], {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes});
  return take_error();
}
int hipGetLastError() { return 0; }
const char* hipGetErrorString(int code) {
  return code == 2     ? "out of memory"
         : code == 700 ? "an illegal memory access was encountered"
                       : "fake error";
}

void** __hipRegisterFatBinary(const void* data) {
  // Clang's wrapper: magic "HIPF", version 1, pointer to the bundle.
  uint32_t head[2];
  std::memcpy(head, data, sizeof head);
  return head[0] == 0x48495046 && head[1] == 1 ? reinterpret_cast<void**>(&g_names) : nullptr;
}
void __hipRegisterFunction(void** modules, const void* host_function, char*, const char* name, unsigned,
                           void*, void*, void*, void*, int*) {
  if (!modules) return;
  g_names[host_function] = name;
  g_fake.kernels.emplace_back(name);
}
void __hipRegisterVar(void**, void*, char*, const char*, int, size_t, int, int) {}
}
