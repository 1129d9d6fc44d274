#include "ops/weight.h"

namespace trivium::ops {

Weight Weight::dense(const Tensor& data, const char* what) {
  TRIVIUM_CHECK(data.rank() == 2 || data.rank() == 3, what, " is ", data.shape(),
                ", expected [rows, cols] or [experts, rows, cols]");
  TRIVIUM_CHECK(data.is_contiguous(), what, " is not contiguous");
  Weight w;
  w.data = data;
  w.shape = data.shape();
  switch (data.dtype()) {
    case Dtype::f32:
      w.format = WeightFormat::f32;
      break;
    case Dtype::bf16:
      w.format = WeightFormat::bf16;
      break;
    case Dtype::f16:
      w.format = WeightFormat::f16;
      break;
    default:
      throw InvalidArgument(
          concat(what, " has dtype ", data.dtype(), ", expected float32, bfloat16 or float16"));
  }
  return w;
}

Weight Weight::mxfp4(const Tensor& blocks, const Tensor& scales, const char* what) {
  TRIVIUM_CHECK(blocks.dtype() == Dtype::u8 && scales.dtype() == Dtype::u8, what, ": blocks are ",
                blocks.dtype(), " and scales ", scales.dtype(), ", expected uint8");
  const int rank = blocks.rank();
  bool fits = (rank == 3 || rank == 4) && blocks.dim(-1) == kMxBlockBytes && scales.rank() == rank - 1;
  for (int d = 0; fits && d < rank - 1; ++d) fits = blocks.dim(d) == scales.dim(d);
  TRIVIUM_CHECK(fits, what, ": blocks ", blocks.shape(), " and scales ", scales.shape(),
                ", expected [.., rows, cols/32, 16] and [.., rows, cols/32]");
  TRIVIUM_CHECK(blocks.is_contiguous() && scales.is_contiguous() && blocks.device() == scales.device(), what,
                ": blocks and scales must be contiguous and on one device");
  Weight w;
  w.data = blocks;
  w.scales = scales;
  w.format = WeightFormat::mxfp4;
  const int64_t cols = blocks.dim(-2) * kMxBlock;
  w.shape = rank == 3 ? Shape{blocks.dim(0), cols} : Shape{blocks.dim(0), blocks.dim(1), cols};
  return w;
}

VectorView vector_view(const Tensor& v, int64_t size, Device device, const char* what) {
  if (!v.data()) return {nullptr, Dtype::f32};
  TRIVIUM_CHECK(v.numel() == size, what, " is ", v.shape(), ", expected ", size, " elements");
  TRIVIUM_CHECK(v.dtype() == Dtype::f32 || v.dtype() == Dtype::bf16 || v.dtype() == Dtype::f16, what,
                " has dtype ", v.dtype(), ", expected float32, bfloat16 or float16");
  TRIVIUM_CHECK(v.is_contiguous() && v.device() == device, what, " must be contiguous and on ", device);
  return {v.data(), v.dtype()};
}

}  // namespace trivium::ops
