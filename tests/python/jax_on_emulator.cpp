// For test_mlstm_devices.py: the emulator emu32 as a backend that calls itself cuda, and XLA handlers for
// jax's CPU that run the CUDA handlers of trivium._jax on it. They give those handlers what XLA gives on a
// GPU: buffers and work memory on the device, a stream, an ordinal; and they write down what the handlers ask
// of the device.
#include <dlfcn.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/backend.h"
#include "xla/ffi/api/c_api.h"

namespace trivium {
namespace {

constexpr int32_t kOrdinal = 1;  // of the emulator's two devices

const Runtime* g_emulator = nullptr;
StreamHandle* g_stream = nullptr;  // "XLA's"
XLA_FFI_Handler* g_handlers[2] = {};
std::vector<void*> g_freed;  // work memory that a handler gave back: free once the stream has passed
std::string g_log;

void log(const std::string& word) { g_log += word + " "; }
std::string text(const void* p) { return std::to_string(reinterpret_cast<uintptr_t>(p)); }

Status allocate(int32_t index, int64_t bytes, void** memory) {
  log("allocate");
  return g_emulator->allocate(index, bytes, memory);
}
Status deallocate(int32_t index, void* memory) {
  log("deallocate");
  return g_emulator->deallocate(index, memory);
}
Status copy(int32_t index, StreamHandle* stream, void* to, const void* from, int64_t bytes) {
  if (!stream) log("copy");
  return g_emulator->copy(index, stream, to, from, bytes);
}
Status stream_synchronize(StreamHandle* stream) {
  log("sync");
  return g_emulator->stream_synchronize(stream);
}
// A vendor's handle of a stream is the emulator's own here.
Status stream_borrow(int32_t index, void* native, StreamHandle** stream) {
  log("borrow:" + std::to_string(index) + (native == g_stream ? ":xla" : ":other"));
  *stream = static_cast<StreamHandle*>(native);
  return Status::ok;
}
Status stream_destroy(StreamHandle* stream) {
  if (stream != g_stream) return g_emulator->stream_destroy(stream);
  log("return");
  return Status::ok;
}
Status stream_native(StreamHandle* stream, void** native) {
  *native = stream;
  return Status::ok;
}
Status foreign_wait(StreamHandle* stream, void* native) {
  log("wait:" + text(stream) + ":" + text(native));
  return Status::ok;
}

// --- XLA's side ---

XLA_FFI_Error* stream_get(XLA_FFI_Stream_Get_Args* args) {
  args->stream = g_stream;
  return nullptr;
}
XLA_FFI_Error* ordinal_get(XLA_FFI_DeviceOrdinal_Get_Args* args) {
  args->device_ordinal = kOrdinal;
  return nullptr;
}
XLA_FFI_Error* memory_allocate(XLA_FFI_DeviceMemory_Allocate_Args* args) {
  g_emulator->allocate(kOrdinal, static_cast<int64_t>(args->size), &args->data);
  return nullptr;
}
XLA_FFI_Error* memory_free(XLA_FFI_DeviceMemory_Free_Args* args) {
  g_freed.push_back(args->data);
  return nullptr;
}

int64_t bytes_of(const XLA_FFI_Buffer& buffer) {
  int64_t bytes = buffer.dtype == XLA_FFI_DataType_F32 ? 4 : 2;
  for (int64_t i = 0; i < buffer.rank; ++i) bytes *= buffer.dims[i];
  return bytes;
}

// XLA's host buffers, and the same on the device.
struct OnDevice {
  std::vector<XLA_FFI_Buffer> host, device;
  std::vector<void*> pointers;

  OnDevice(void** buffers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) host.push_back(*static_cast<XLA_FFI_Buffer*>(buffers[i]));
    device = host;
    for (size_t i = 0; i < host.size(); ++i) {
      if (g_emulator) g_emulator->allocate(kOrdinal, bytes_of(host[i]), &device[i].data);
      pointers.push_back(&device[i]);
    }
  }
  ~OnDevice() {
    for (const XLA_FFI_Buffer& b : device)
      if (g_emulator) g_emulator->deallocate(kOrdinal, b.data);
  }
  void copy_in() const {
    for (size_t i = 0; g_emulator && i < host.size(); ++i)
      g_emulator->copy(kOrdinal, nullptr, device[i].data, host[i].data, bytes_of(host[i]));
  }
  void copy_out() const {
    for (size_t i = 0; g_emulator && i < host.size(); ++i)
      g_emulator->copy(kOrdinal, nullptr, host[i].data, device[i].data, bytes_of(host[i]));
  }
};

XLA_FFI_Error* run(XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
  if (frame->extension_start) return handler(frame);  // XLA asks what the handler is
  XLA_FFI_Api api = *frame->api;
  api.XLA_FFI_Stream_Get = stream_get, api.XLA_FFI_DeviceOrdinal_Get = ordinal_get;
  api.XLA_FFI_DeviceMemory_Allocate = memory_allocate, api.XLA_FFI_DeviceMemory_Free = memory_free;
  const OnDevice arguments(frame->args.args, frame->args.size), results(frame->rets.rets, frame->rets.size);
  arguments.copy_in();
  XLA_FFI_CallFrame call = *frame;
  call.api = &api;
  call.args.args = const_cast<void**>(arguments.pointers.data());
  call.rets.rets = const_cast<void**>(results.pointers.data());
  if (g_emulator && !g_stream) g_emulator->stream_create(kOrdinal, &g_stream);
  g_log.clear();
  XLA_FFI_Error* error = handler(&call);
  if (g_emulator && g_emulator->stream_synchronize(g_stream) != Status::ok) log("failed");
  for (void* memory : g_freed) g_emulator->deallocate(kOrdinal, memory);
  log("scratch:" + std::to_string(g_freed.size()));
  g_freed.clear();
  if (!error) results.copy_out();
  return error;
}

}  // namespace
}  // namespace trivium

const trivium_backend_v1* trivium_backend_get(uint32_t abi) {
  using namespace trivium;
  void* library = ::dlopen(EMULATOR, RTLD_NOW | RTLD_LOCAL);
  if (!library) return nullptr;
  const auto get = reinterpret_cast<decltype(&trivium_backend_get)>(::dlsym(library, "trivium_backend_get"));
  const trivium_backend_v1* emulated = get ? get(abi) : nullptr;
  if (!emulated) return nullptr;
  static trivium_backend_v1 backend = *emulated;
  static Runtime runtime = *emulated->runtime;
  g_emulator = emulated->runtime;
  runtime.allocate = allocate, runtime.deallocate = deallocate, runtime.copy = copy;
  runtime.stream_synchronize = stream_synchronize;
  runtime.stream_borrow = stream_borrow, runtime.stream_destroy = stream_destroy;
  runtime.stream_native = stream_native, runtime.foreign_wait = foreign_wait;
  backend.name = "cuda", backend.kind = DeviceKind::cuda, backend.runtime = &runtime;
  return &backend;
}

extern "C" {
void set_handlers(void* forward, void* backward) {
  trivium::g_handlers[0] = reinterpret_cast<XLA_FFI_Handler*>(forward);
  trivium::g_handlers[1] = reinterpret_cast<XLA_FFI_Handler*>(backward);
}
XLA_FFI_Error* forward(XLA_FFI_CallFrame* frame) { return trivium::run(trivium::g_handlers[0], frame); }
XLA_FFI_Error* backward(XLA_FFI_CallFrame* frame) { return trivium::run(trivium::g_handlers[1], frame); }
// What happened since the last handler began, or since the last call.
const char* device_log() {
  static std::string shown;
  shown = std::move(trivium::g_log);
  trivium::g_log.clear();
  return shown.c_str();
}
}
