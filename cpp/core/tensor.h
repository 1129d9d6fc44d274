// Tensor: shape, strides, dtype and device over shared storage. Copying a Tensor shares the storage.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace trivium {

inline constexpr int64_t kHostAlignment = 64;  // what jax needs to import host buffers without a copy

class Tensor {
 public:
  Tensor() = default;

  // Uninitialised and contiguous; OutOfMemory when it cannot be had.
  static Tensor empty(const Shape& shape, Dtype dtype, Device device = {});
  static Tensor zeros(const Shape& shape, Dtype dtype, Device device = {});
  // Like empty, for work on the device's default stream: on a GPU neither this nor giving the memory back
  // waits, both have their place in that stream's order. Another stream may use it between two events that
  // say so.
  static Tensor in_order(const Shape& shape, Dtype dtype, Device device);
  // A host tensor that copies to and from `device` reach in the background (pinned memory on a GPU).
  static Tensor pinned(const Shape& shape, Dtype dtype, Device device);
  // Wraps memory kept alive by `owner`; strides count elements, empty = row-major.
  static Tensor wrap(void* data, const Shape& shape, Dtype dtype, Device device, std::shared_ptr<void> owner,
                     std::span<const int64_t> strides = {}, bool read_only = false);

  // False for a default-made tensor, which stands for one that is not given; a scalar has rank 0 and is
  // defined.
  bool defined() const { return data_ != nullptr || (rank() > 0 && numel_ == 0); }
  const Shape& shape() const { return shape_; }
  std::span<const int64_t> strides() const { return {strides_.data(), static_cast<size_t>(shape_.rank())}; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return numel_; }
  int64_t nbytes() const { return numel_ * size_of(dtype_); }
  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool read_only() const { return read_only_; }
  bool is_contiguous() const;
  bool is_aligned() const;  // data() can be read as the dtype's type
  const std::shared_ptr<void>& owner() const { return owner_; }

  void* data() const { return data_; }
  // Typed pointer; InvalidArgument when T is not the dtype.
  template <class T>
  T* data_as() const {
    TRIVIUM_CHECK(dtype_of<T> == dtype_, "tensor has dtype ", dtype_, ", not ", dtype_of<T>);
    return static_cast<T*>(data_);
  }

  Tensor reshape(const Shape& shape) const;        // contiguous tensors only; shares storage
  Tensor slice(int64_t begin, int64_t end) const;  // along dimension 0; shares storage
  Tensor contiguous() const;                       // itself when it already is
  // Itself when already there. Blocks until copied; a copy from a GPU comes after what is queued on its
  // default stream.
  Tensor to(Device device) const;
  Tensor to(Dtype dtype) const;  // f32, bf16, f16 and f64 among each other

 private:
  Shape shape_;
  std::array<int64_t, Shape::kMaxRank> strides_{};
  int64_t numel_ = 0;
  Dtype dtype_ = Dtype::f32;
  Device device_;
  bool read_only_ = false;
  void* data_ = nullptr;
  std::shared_ptr<void> owner_;
};

}  // namespace trivium
