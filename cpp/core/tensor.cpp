#include "core/tensor.h"

#include <cstring>

#include "core/registry.h"

namespace trivium {
namespace {

void check(Device device, Status status) {
  if (status != Status::ok) throw_status(device.kind, status);
}

int64_t bytes_of(const Shape& shape, Dtype dtype) {
  int64_t bytes = 0;
  TRIVIUM_CHECK(!__builtin_mul_overflow(shape.numel(), size_of(dtype), &bytes), "tensor: ", shape, " ", dtype,
                " is larger than the address space");
  return std::max<int64_t>(bytes, 1);
}

// Copies a strided tensor row by row into contiguous memory; the last dimension goes element by element only
// when it is strided itself. Host memory only.
void gather_strided(const Tensor& from, char* to) {
  const int rank = from.rank();
  const int64_t element = size_of(from.dtype());
  std::array<int64_t, Shape::kMaxRank> index{};
  const auto* base = static_cast<const char*>(from.data());
  for (int64_t i = 0; i < from.numel(); ++i) {
    int64_t offset = 0;
    for (int d = 0; d < rank; ++d) offset += index[d] * from.strides()[d];
    std::memcpy(to + i * element, base + offset * element, static_cast<size_t>(element));
    for (int d = rank - 1; d >= 0 && ++index[d] == from.dim(d); --d) index[d] = 0;
  }
}

}  // namespace

Tensor Tensor::wrap(void* data, const Shape& shape, Dtype dtype, Device device, std::shared_ptr<void> owner,
                    std::span<const int64_t> strides, bool read_only) {
  Tensor t;
  t.shape_ = shape;
  t.numel_ = shape.numel();
  t.dtype_ = dtype;
  t.device_ = device;
  t.read_only_ = read_only;
  t.data_ = data;
  t.owner_ = std::move(owner);
  TRIVIUM_CHECK(strides.empty() || static_cast<int>(strides.size()) == shape.rank(),
                "tensor: ", strides.size(), " strides for shape ", shape);
  int64_t running = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    t.strides_[d] = strides.empty() ? running : strides[d];
    if (__builtin_mul_overflow(running, shape[d], &running)) running = 0;  // only beside an extent of 0
  }
  return t;
}

Tensor Tensor::empty(const Shape& shape, Dtype dtype, Device device) {
  const int64_t bytes = bytes_of(shape, dtype);
  void* memory = nullptr;
  check(device, runtime(device).allocate(device.index, bytes, &memory));
  const auto release = [device](void* p) { runtime(device).deallocate(device.index, p); };
  return wrap(memory, shape, dtype, device, std::shared_ptr<void>(memory, release));
}

Tensor Tensor::in_order(const Shape& shape, Dtype dtype, Device device) {
  const Runtime& r = runtime(device);
  if (!r.allocate_in_order) return empty(shape, dtype, device);
  const int64_t bytes = bytes_of(shape, dtype);
  StreamHandle* stream = default_stream(device);
  void* memory = nullptr;
  check(device, r.allocate_in_order(stream, bytes, &memory));
  const auto release = [&r, stream](void* p) { r.deallocate_in_order(stream, p); };
  return wrap(memory, shape, dtype, device, std::shared_ptr<void>(memory, release));
}

Tensor Tensor::zeros(const Shape& shape, Dtype dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  check(device, runtime(device).fill(device.index, nullptr, t.data(), 0, t.nbytes()));
  return t;
}

Tensor Tensor::pinned(const Shape& shape, Dtype dtype, Device device) {
  const Runtime& r = runtime(device);
  if (!r.allocate_host) return empty(shape, dtype);
  void* memory = nullptr;
  check(device, r.allocate_host(device.index, std::max<int64_t>(shape.numel() * size_of(dtype), 1), &memory));
  const auto release = [device](void* p) { runtime(device).deallocate_host(device.index, p); };
  return wrap(memory, shape, dtype, Device{}, std::shared_ptr<void>(memory, release));
}

bool Tensor::is_contiguous() const {
  if (numel_ == 0) return true;
  int64_t running = 1;
  for (int d = rank() - 1; d >= 0; --d) {
    if (shape_[d] != 1 && strides_[d] != running) return false;
    running *= shape_[d];
  }
  return true;
}

bool Tensor::is_aligned() const {
  return reinterpret_cast<uintptr_t>(data_) % static_cast<uintptr_t>(size_of(dtype_)) == 0;
}

Tensor Tensor::reshape(const Shape& shape) const {
  TRIVIUM_CHECK(is_contiguous(), "reshape: the tensor is not contiguous");
  TRIVIUM_CHECK(shape.numel() == numel_, "reshape: ", shape_, " has ", numel_, " elements, ", shape, " has ",
                shape.numel());
  return wrap(data_, shape, dtype_, device_, owner_, {}, read_only_);
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  TRIVIUM_CHECK(rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0), "slice: [", begin, ", ", end,
                ") of a tensor ", shape_);
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::copy(shape_.begin(), shape_.end(), dims.begin());
  dims[0] = end - begin;
  char* start = static_cast<char*>(data_) + begin * strides_[0] * size_of(dtype_);
  return wrap(start, Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(rank()))), dtype_,
              device_, owner_, strides(), read_only_);
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return *this;
  TRIVIUM_CHECK(device_.kind == DeviceKind::cpu, "contiguous: strided tensors on ", device_,
                " are not supported");
  Tensor out = empty(shape_, dtype_, device_);
  gather_strided(*this, static_cast<char*>(out.data()));
  return out;
}

Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  const Tensor source = contiguous();
  Tensor out = empty(shape_, dtype_, device);
  TRIVIUM_CHECK(
      device.kind == DeviceKind::cpu || device_.kind == DeviceKind::cpu || device.kind == device_.kind,
      "to: no direct copy from ", device_, " to ", device, "; go through the cpu");
  // A GPU does the copy: the source's, where work on it may still be queued, else the destination's.
  const Device worker = is_gpu(device_.kind) ? device_ : device;
  StreamHandle* stream = is_gpu(device_.kind) ? default_stream(device_) : nullptr;
  check(worker, runtime(worker).copy(worker.index, stream, out.data(), source.data(), nbytes()));
  if (stream) synchronize(worker, stream);
  return out;
}

Tensor Tensor::to(Dtype dtype) const {
  if (dtype == dtype_) return *this;
  const Tensor source = contiguous();
  Tensor out = empty(shape_, dtype, device_);
  const ConvertArgs args{
      .from = source.data(), .to = out.data(), .count = numel_, .from_dtype = dtype_, .to_dtype = dtype};
  call_kernel(device_, &Kernels::convert, "convert", nullptr, args);
  return out;
}

}  // namespace trivium
