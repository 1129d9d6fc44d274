#include "dlpack.h"

#include <cstring>
#include <optional>
#include <vector>

#include "bindings.h"
#include "core/registry.h"

namespace trivium::python::dlpack {
namespace {

constexpr const char* kName = "dltensor";
constexpr const char* kUsedName = "used_dltensor";
constexpr const char* kVersionedName = "dltensor_versioned";
constexpr const char* kUsedVersionedName = "used_dltensor_versioned";

DataType data_type(Dtype dtype) {
  const auto bits = static_cast<uint8_t>(8 * size_of(dtype));
  switch (dtype) {
    case Dtype::f32:
    case Dtype::f16:
    case Dtype::f64:
      return {kFloat, bits, 1};
    case Dtype::bf16:
      return {kBfloat, bits, 1};
    case Dtype::i64:
    case Dtype::i32:
    case Dtype::i16:
    case Dtype::i8:
      return {kInt, bits, 1};
    case Dtype::u8:
    case Dtype::u16:
    case Dtype::u32:
      return {kUInt, bits, 1};
    case Dtype::boolean:
      return {kBool, bits, 1};
  }
  throw py::buffer_error("dtype has no DLPack code");
}

Dtype dtype_from(DataType type) {
  for (const Dtype dtype : kAllDtypes) {
    const DataType ours = data_type(dtype);
    if (type.code == ours.code && type.bits == ours.bits && type.lanes == 1) return dtype;
  }
  throw py::buffer_error(concat("from_dlpack: element type (code ", int{type.code}, ", ", int{type.bits},
                                " bits, ", type.lanes,
                                " lanes) is not supported; expected float16/32/64, bfloat16, bool, "
                                "int8/16/32/64 or uint8/16/32"));
}

Device device_from(DeviceId id) {
  switch (id.type) {
    case kCpu:
    case kCudaHost:  // pinned host memory
    case kRocmHost:
      return {DeviceKind::cpu, 0};
    case kCuda:
      return {DeviceKind::cuda, id.index};
    case kRocm:
      return {DeviceKind::hip, id.index};
    default:
      throw py::buffer_error(concat("from_dlpack: DLPack device type ", id.type, " is not supported"));
  }
}

thread_local std::vector<const ForeignStream*> g_inside;

// The innermost one of this thread that is over the device.
const ForeignStream* inside(Device device) {
  for (size_t i = g_inside.size(); i-- > 0;)
    if (g_inside[i]->device() == device) return g_inside[i];
  return nullptr;
}

// Calls an entry about the default stream of `device`.
template <class... Args>
void call_runtime(Device device, Status (*entry)(StreamHandle*, Args...), Args... args) {
  if (!entry) throw NotImplemented(concat("DLPack streams on ", device));
  if (const Status s = entry(default_stream(device), args...); s != Status::ok) throw_status(device.kind, s);
}

// What the exported structs point to; one allocation frees all of it.
template <class Struct>
struct Exported {
  Struct managed{};
  Tensor tensor;
  std::optional<void*> consumer;  // the only stream that uses it
  bool taken = true;              // by a consumer
  std::array<int64_t, Shape::kMaxRank> shape{}, strides{};

  explicit Exported(const Tensor& t) : tensor(t) {
    std::copy(t.shape().begin(), t.shape().end(), shape.begin());
    std::copy(t.strides().begin(), t.strides().end(), strides.begin());
    managed.tensor = {.data = t.data(),
                      .device = device_of(t),
                      .ndim = t.rank(),
                      .dtype = data_type(t.dtype()),
                      .shape = shape.data(),
                      .strides = strides.data(),
                      .byte_offset = 0};
    managed.context = this;
    managed.deleter = [](Struct* self) { delete static_cast<Exported*>(self->context); };
    if (const ForeignStream* s = inside(t.device())) consumer = s->native();
  }
  ~Exported() {
    const Device device = tensor.device();
    if (!taken || device_of(tensor).type == kCpu) return;
    const Runtime& r = runtime(device);  // what fails here fails again, and is said, in the next call
    if (consumer)
      r.wait_foreign(default_stream(device), *consumer);
    else if (r.device_synchronize)
      r.device_synchronize(device.index);
  }
};

// The capsule's own destructor: only an unconsumed capsule still owns its tensor.
template <class Struct>
void destroy_capsule(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto* managed = static_cast<Struct*>(PyCapsule_GetPointer(capsule, name));
  static_cast<Exported<Struct>*>(managed->context)->taken = false;
  managed->deleter(managed);
}

template <class Struct>
PyObject* new_capsule(Exported<Struct>* exported, const char* name, PyCapsule_Destructor destructor) {
  PyObject* capsule = PyCapsule_New(&exported->managed, name, destructor);
  if (!capsule) {
    delete exported;
    throw py::error_already_set();
  }
  return capsule;
}

// Gives a consumed struct back to its producer, which may need the GIL to drop Python objects: after the work
// that we have queued on it, unless the producer's stream waits for that.
template <class Struct>
std::shared_ptr<void> release_later(Struct* managed) {
  const Device device = device_from(managed->tensor.device);
  const bool waits = is_gpu(device.kind) && !inside(device);
  return {managed, [device, waits](void* p) {
            auto* m = static_cast<Struct*>(p);
            if (!m->deleter || !interpreter_alive()) return;
            if (waits) runtime(device).stream_synchronize(default_stream(device));
            const py::gil_scoped_acquire gil;
            m->deleter(m);
          }};
}

Tensor wrap(const TensorView& view, std::shared_ptr<void> owner, bool read_only) {
  if (view.ndim < 0 || view.ndim > Shape::kMaxRank)
    throw py::buffer_error(
        concat("from_dlpack: ", view.ndim, " dimensions; at most ", Shape::kMaxRank, " are supported"));
  const Dtype dtype = dtype_from(view.dtype);
  const auto rank = static_cast<size_t>(view.ndim);
  const Shape shape(std::span<const int64_t>(view.shape, rank));
  const std::span<const int64_t> strides(view.strides, view.strides ? rank : 0);
  auto* data = static_cast<std::byte*>(view.data) + view.byte_offset;
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(dtype)) != 0)
    throw py::buffer_error(
        concat("from_dlpack: data is not aligned to its ", size_of(dtype), "-byte elements"));
  return Tensor::wrap(data, shape, dtype, device_from(view.device), std::move(owner), strides, read_only);
}

}  // namespace

DeviceId device_of(const Tensor& tensor) {
  const Device device = tensor.device();
  switch (device.kind) {
    case DeviceKind::cuda:
      return {kCuda, device.index};
    case DeviceKind::hip:
      return {kRocm, device.index};
    default:
      return {kCpu, 0};
  }
}

void make_consumer_wait(const Tensor& tensor, const py::object& stream) {
  const DeviceId id = device_of(tensor);
  if (id.type == kCpu) {
    TRIVIUM_CHECK(stream.is_none(), "__dlpack__: stream must be None for a tensor on ", tensor.device());
    if (is_gpu(tensor.device().kind)) synchronize(tensor.device(), default_stream(tensor.device()));
    return;
  }
  const bool rocm = id.type == kRocm;
  TRIVIUM_CHECK(stream.is_none() || py::isinstance<py::int_>(stream), "__dlpack__: stream is a ",
                Py_TYPE(stream.ptr())->tp_name, ", expected None or an int");
  const int64_t number = stream.is_none() ? (rocm ? 0 : 1) : stream.cast<int64_t>();
  if (number == -1) return;
  TRIVIUM_CHECK(number > 2 || (rocm ? number == 0 : number == 1 || number == 2), "__dlpack__: stream ",
                number, " does not exist on ", tensor.device(), "; expected -1, ", rocm ? "0" : "1, 2",
                " or a pointer");
  call_runtime(tensor.device(), runtime(tensor.device()).foreign_wait, reinterpret_cast<void*>(number));
}

py::object import_stream(DeviceId id) {
  const Device device = device_from(id);
  if (device.kind == DeviceKind::cpu) return py::none();
  if (inside(device)) return py::int_(-1);  // we wait for its stream already
  void* native = nullptr;
  call_runtime(device, runtime(device).stream_native, &native);
  return py::int_(reinterpret_cast<uintptr_t>(native));
}

void finish_import(DeviceId id) {
  const Device device = device_from(id);
  if (device.kind == DeviceKind::cpu || inside(device)) return;
  const py::gil_scoped_release release;
  synchronize(device, default_stream(device));
}

void ForeignStream::enter() {
  call_runtime(device_, runtime(device_).wait_foreign, native());
  g_inside.push_back(this);
}

void ForeignStream::exit() {
  std::erase(g_inside, this);
  call_runtime(device_, runtime(device_).foreign_wait, native());
}

py::capsule to_capsule(const Tensor& tensor, bool versioned, bool copied) {
  if (!versioned) {
    if (tensor.read_only())
      throw py::buffer_error(
          "__dlpack__: this tensor is read-only, which only DLPack 1.0 can express; "
          "pass max_version=(1, 0) or copy=True");
    return py::reinterpret_steal<py::capsule>(new_capsule(
        new Exported<Managed>(tensor), kName, [](PyObject* c) { destroy_capsule<Managed>(c, kName); }));
  }
  auto* exported = new Exported<ManagedVersioned>(tensor);
  exported->managed.version = {kMajor, kMinor};
  exported->managed.flags = (tensor.read_only() ? kReadOnly : 0) | (copied ? kIsCopied : 0);
  return py::reinterpret_steal<py::capsule>(new_capsule(
      exported, kVersionedName, [](PyObject* c) { destroy_capsule<ManagedVersioned>(c, kVersionedName); }));
}

Tensor from_capsule(const py::object& capsule) {
  PyObject* c = capsule.ptr();
  if (PyCapsule_IsValid(c, kVersionedName)) {
    auto* managed = static_cast<ManagedVersioned*>(PyCapsule_GetPointer(c, kVersionedName));
    if (managed->version.major != kMajor)
      throw py::buffer_error(concat("from_dlpack: DLPack version ", managed->version.major, ".",
                                    managed->version.minor, "; version ", kMajor, ".x is supported"));
    PyCapsule_SetName(c, kUsedVersionedName);
    return wrap(managed->tensor, release_later(managed), (managed->flags & kReadOnly) != 0);
  }
  if (PyCapsule_IsValid(c, kName)) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(c, kName));
    PyCapsule_SetName(c, kUsedName);
    return wrap(managed->tensor, release_later(managed), false);
  }
  throw py::buffer_error("from_dlpack: __dlpack__() did not return an unused DLPack capsule");
}

}  // namespace trivium::python::dlpack
