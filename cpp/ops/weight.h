// Weight: a matrix (or one per expert) as it lies in a checkpoint.
#pragma once

#include "core/tensor.h"
#include "ops/args.h"

namespace trivium::ops {

struct Weight {
  Tensor data;    // dense: [..., rows, cols] f32, bf16 or f16; MXFP4: blocks u8 [..., rows, cols / 32, 16]
  Tensor scales;  // MXFP4: u8 [..., rows, cols / 32]; undefined for dense
  WeightFormat format = WeightFormat::bf16;
  Shape shape;  // logical: [rows, cols] or [experts, rows, cols]

  // InvalidArgument when dtype or shapes do not fit; `what` starts the message.
  static Weight dense(const Tensor& data, const char* what);
  static Weight mxfp4(const Tensor& blocks, const Tensor& scales, const char* what);

  WeightView view() const {
    return {data.data(), format == WeightFormat::mxfp4 ? static_cast<const uint8_t*>(scales.data()) : nullptr,
            format};
  }
  Device device() const { return data.device(); }
};

// View of a vector parameter; an undefined tensor gives an absent one. InvalidArgument unless it is [size]
// (or `size` elements in all) of f32, bf16 or f16, contiguous and on `device`.
VectorView vector_view(const Tensor& v, int64_t size, Device device, const char* what);

}  // namespace trivium::ops
