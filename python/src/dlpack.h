// The versioned DLPack ABI 1.1 (struct layout of the published specification, dmlc.github.io/dlpack), and
// conversion between its capsules and Tensor without copying elements.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/tensor.h"

namespace trivium::python::dlpack {

inline constexpr uint32_t kMajor = 1, kMinor = 1;
inline constexpr uint64_t kReadOnly = 1, kIsCopied = 2;  // bits of ManagedVersioned::flags

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kRocm = 10, kRocmHost = 11 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct DeviceId {
  int32_t type, index;
};

struct TensorView {
  void* data;
  DeviceId device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null = row-major
  uint64_t byte_offset;
};

// "dltensor": before version 1.0.
struct Managed {
  TensorView tensor;
  void* context;
  void (*deleter)(Managed* self);
};

struct Version {
  uint32_t major, minor;
};

// "dltensor_versioned"; up to `deleter` its layout is the same in every version.
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned* self);
  uint64_t flags;
  TensorView tensor;
};

// Where DLPack has the tensor: emulated devices are host memory.
DeviceId device_of(const Tensor& tensor);

// __dlpack__(stream=...): later work on the consumer's stream waits for the tensor. A stream is a number of
// the array API standard: on CUDA 1 (default), 2 (per thread) or a pointer, on ROCm 0 or a pointer, -1 for no
// waiting; None is the default stream, and on the host the only choice. InvalidArgument otherwise.
void make_consumer_wait(const Tensor& tensor, const pybind11::object& stream);

// What a producer on `id` is to call its stream argument: ours, or None for host memory. Once the producer
// has answered, finish_import() makes our work wait for its, or blocks until that is done. DeviceError when
// we have no such device.
pybind11::object import_stream(DeviceId id);
void finish_import(DeviceId id);

// trivium._core.ForeignStream, a context manager: while a thread is inside, arrays of `device` that it
// imports are used by the other library on its stream `native` only, which outlives them. By events alone our
// work then comes after what that stream was given before the import, and what it is given after an array is
// let go, or after the end, comes after our work. Without it the host waits in both places.
class ForeignStream {
 public:
  ForeignStream(DeviceId device, uintptr_t native);
  void enter() const;
  void exit() const;
  void follow() const;       // our later work comes after what the stream has been given
  void be_followed() const;  // its later work after ours
  Device device() const { return device_; }

 private:
  Device device_;
  uintptr_t native_;
};

// A capsule that shares the tensor's storage. BufferError: a read-only tensor in the unversioned form.
pybind11::capsule to_capsule(const Tensor& tensor, bool versioned, bool copied);

// Takes over the capsule's tensor; it is given back to its producer when the last Tensor over it is gone.
// BufferError when the capsule cannot be represented.
Tensor from_capsule(const pybind11::object& capsule);

}  // namespace trivium::python::dlpack
