// The versioned DLPack ABI 1.1 (struct layout of the published specification, dmlc.github.io/dlpack), and
// conversion between its capsules and Tensor without copying elements.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/tensor.h"

namespace trivium::python::dlpack {

inline constexpr uint32_t kMajor = 1, kMinor = 1;
inline constexpr uint64_t kReadOnly = 1, kIsCopied = 2;  // bits of ManagedVersioned::flags

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kRocm = 10 };
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

DeviceId device_of(const Tensor& tensor);

// A capsule that shares the tensor's storage. BufferError: a read-only tensor in the unversioned form.
pybind11::capsule to_capsule(const Tensor& tensor, bool versioned, bool copied);

// Takes over the capsule's tensor; it is given back to its producer when the last Tensor over it is gone.
// BufferError when the capsule cannot be represented.
Tensor from_capsule(const pybind11::object& capsule);

}  // namespace trivium::python::dlpack
