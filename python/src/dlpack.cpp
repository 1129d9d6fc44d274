#include "dlpack.h"

#include <cstring>
#include <functional>
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

thread_local std::vector<ForeignStream> g_inside;

// The innermost one of this thread that is over the device.
const ForeignStream* inside(Device device) {
  for (size_t i = g_inside.size(); i-- > 0;)
    if (g_inside[i].device() == device) return &g_inside[i];
  return nullptr;
}

// Runs fn, which may block, without the GIL where the thread has it.
template <class Fn>
void without_gil(const Fn& fn) {
  std::optional<py::gil_scoped_release> release;
  if (interpreter_alive() && PyGILState_Check()) release.emplace();
  fn();
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
  bool taken = true;  // by a consumer
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
  }
  // Nobody says on which streams the memory was used.
  ~Exported() {
    const Device device = tensor.device();
    if (!taken || device_of(tensor).type == kCpu) return;
    if (const auto wait = runtime(device).device_synchronize) without_gil([&] { wait(device.index); });
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
// that we have queued on it. DeviceError when we have no such device.
template <class Struct>
std::shared_ptr<void> release_later(Struct* managed) {
  const Device device = device_from(managed->tensor.device);
  std::function<void()> settle = [] {};
  if (const ForeignStream* theirs = inside(device))
    settle = [stream = *theirs] { stream.be_followed(); };
  else if (is_gpu(device.kind))
    settle = [wait = runtime(device).stream_synchronize, ours = default_stream(device)] {
      without_gil([&] { wait(ours); });
    };
  return {managed, [settle = std::move(settle)](void* p) {
            auto* m = static_cast<Struct*>(p);
            if (!m->deleter || !interpreter_alive()) return;
            try {
              settle();
            } catch (const Error&) {  // the device is lost: later calls say so
            }
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
    const Device device = tensor.device();
    if (is_gpu(device.kind)) without_gil([&] { synchronize(device, default_stream(device)); });
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
  if (inside(device)) return py::int_(-1);  // finish_import() sees to it
  void* native = nullptr;
  call_runtime(device, runtime(device).stream_native, &native);
  return py::int_(reinterpret_cast<uintptr_t>(native));
}

void finish_import(DeviceId id) {
  const Device device = device_from(id);
  if (device.kind == DeviceKind::cpu) return;
  if (const ForeignStream* theirs = inside(device)) return theirs->follow();
  const py::gil_scoped_release release;
  synchronize(device, default_stream(device));
}

ForeignStream::ForeignStream(DeviceId device, uintptr_t native)
    : device_(device_from(device)), native_(native) {}

void ForeignStream::follow() const {
  call_runtime(device_, runtime(device_).wait_foreign, reinterpret_cast<void*>(native_));
}

void ForeignStream::be_followed() const {
  call_runtime(device_, runtime(device_).foreign_wait, reinterpret_cast<void*>(native_));
}

void ForeignStream::enter() const {
  follow();
  g_inside.push_back(*this);
}

void ForeignStream::exit() const {
  for (size_t i = g_inside.size(); i-- > 0;)
    if (g_inside[i].device() == device_ && g_inside[i].native_ == native_) {
      g_inside.erase(g_inside.begin() + static_cast<ptrdiff_t>(i));
      break;
    }
  be_followed();
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
    std::shared_ptr<void> owner = release_later(managed);
    PyCapsule_SetName(c, kUsedVersionedName);
    return wrap(managed->tensor, std::move(owner), (managed->flags & kReadOnly) != 0);
  }
  if (PyCapsule_IsValid(c, kName)) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(c, kName));
    std::shared_ptr<void> owner = release_later(managed);
    PyCapsule_SetName(c, kUsedName);
    return wrap(managed->tensor, std::move(owner), false);
  }
  throw py::buffer_error("from_dlpack: __dlpack__() did not return an unused DLPack capsule");
}

}  // namespace trivium::python::dlpack
