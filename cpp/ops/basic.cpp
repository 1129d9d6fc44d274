// Embedding, RMSNorm, linear, SwiGLU and MXFP4 decoding.
#include "core/registry.h"
#include "ops/ops.h"

namespace trivium::ops {
namespace {

StreamHandle* handle(Stream* stream) { return stream ? stream->handle() : nullptr; }

void check_dense(const Tensor& t, const char* what) {
  TRIVIUM_CHECK(t.data(), what, " is missing");
  TRIVIUM_CHECK(t.is_contiguous(), what, " is not contiguous");
}

void check_same_device(Device a, Device b, const char* what) {
  TRIVIUM_CHECK(a == b, what, ": tensors on ", a, " and ", b);
}

// shape with its last extent replaced
Shape with_last(const Shape& shape, int64_t last) {
  std::vector<int64_t> dims(shape.begin(), shape.end());
  dims.back() = last;
  return Shape(std::span<const int64_t>(dims));
}

}  // namespace

void embedding(Stream* stream, const Tensor& ids, const Tensor& table, Tensor& y) {
  const EmbeddingArgs args{.ids = ids.data_as<int32_t>(),
                           .table = table.data(),
                           .y = y.data_as<float>(),
                           .tokens = ids.numel(),
                           .vocab = table.dim(0),
                           .dim = table.dim(1),
                           .table_dtype = table.dtype()};
  call_kernel(table.device(), &Kernels::embedding, "embedding", handle(stream), args);
}

Tensor embedding(const Tensor& ids, const Tensor& table) {
  check_dense(ids, "embedding: ids");
  check_dense(table, "embedding: table");
  TRIVIUM_CHECK(ids.rank() == 1 && ids.dtype() == Dtype::i32, "embedding: ids are ", ids.shape(), " ",
                ids.dtype(), ", expected int32 [tokens]");
  TRIVIUM_CHECK(table.rank() == 2, "embedding: table is ", table.shape(), ", expected [vocab, dim]");
  check_same_device(ids.device(), table.device(), "embedding");
  const Tensor on_host = ids.to(Device{});
  for (int64_t i = 0; i < ids.numel(); ++i) {
    const int32_t id = on_host.data_as<int32_t>()[i];
    TRIVIUM_CHECK(0 <= id && id < table.dim(0), "embedding: ids[", i, "] is ", id, ", the table has ",
                  table.dim(0), " rows");
  }
  Tensor y = Tensor::empty({ids.numel(), table.dim(1)}, Dtype::f32, table.device());
  embedding(nullptr, ids, table, y);
  return y;
}

namespace {

void call_rms_norm(Stream* stream, const Tensor& x, const float* add, const Tensor& w, float eps, Tensor& y,
                   const char* what_w) {
  const int64_t dim = x.dim(-1);
  const RmsNormArgs args{.x = x.data(),
                         .add = add,
                         .w = vector_view(w, dim, x.device(), what_w),
                         .y = y.data(),
                         .rows = dim ? x.numel() / dim : 0,
                         .dim = dim,
                         .eps = eps,
                         .x_dtype = x.dtype(),
                         .y_dtype = y.dtype()};
  call_kernel(x.device(), &Kernels::rms_norm, "rms_norm", handle(stream), args);
}

}  // namespace

void rms_norm(Stream* stream, const Tensor& x, const Tensor& w, float eps, Tensor& y) {
  call_rms_norm(stream, x, nullptr, w, eps, y, "rms_norm: w");
}

void add_rms_norm(Stream* stream, Tensor& x, const Tensor& add, const Tensor& w, float eps, Tensor& y) {
  TRIVIUM_CHECK(x.rank() >= 1 && x.dtype() == Dtype::f32 && x.is_contiguous() && !x.read_only(),
                "add_rms_norm: x is ", x.shape(), " ", x.dtype(),
                ", expected contiguous float32 [..., dim] to write");
  TRIVIUM_CHECK(add.shape() == x.shape() && add.dtype() == Dtype::f32 && add.is_contiguous(),
                "add_rms_norm: add is ", add.shape(), " ", add.dtype(), ", expected contiguous float32 ",
                x.shape());
  TRIVIUM_CHECK(
      y.shape() == x.shape() && (y.dtype() == Dtype::f32 || y.dtype() == Dtype::bf16) && y.is_contiguous(),
      "add_rms_norm: y is ", y.shape(), " ", y.dtype(), ", expected contiguous float32 or bfloat16 ",
      x.shape());
  check_same_device(x.device(), add.device(), "add_rms_norm");
  check_same_device(x.device(), y.device(), "add_rms_norm");
  TRIVIUM_CHECK(eps >= 0, "add_rms_norm: eps is ", eps, ", expected >= 0");
  call_rms_norm(stream, x, add.data_as<float>(), w, eps, y, "add_rms_norm: w");
}

Tensor rms_norm(const Tensor& x, const Tensor& w, float eps) {
  check_dense(x, "rms_norm: x");
  check_dense(w, "rms_norm: w");
  TRIVIUM_CHECK(x.rank() >= 1 && (x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16), "rms_norm: x is ",
                x.shape(), " ", x.dtype(), ", expected float32 or bfloat16 [..., dim]");
  TRIVIUM_CHECK(eps >= 0, "rms_norm: eps is ", eps, ", expected >= 0");
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  rms_norm(nullptr, x, w, eps, y);
  return y;
}

void linear(Stream* stream, const Tensor& x, const Weight& w, const Tensor& bias, Tensor& y, int64_t column,
            bool accumulate) {
  TRIVIUM_CHECK(x.rank() == 2 && w.shape.rank() == 2 && x.dim(1) == w.shape[1], "linear: x is ", x.shape(),
                " and w ", w.shape, ", expected [m, k] and [n, k]");
  TRIVIUM_CHECK(x.dtype() == Dtype::f32 || x.dtype() == Dtype::bf16, "linear: x is ", x.dtype(),
                ", expected float32 or bfloat16");
  TRIVIUM_CHECK(y.rank() == 2 && y.dim(0) == x.dim(0) && column + w.shape[0] <= y.dim(1), "linear: y is ",
                y.shape(), ", too small for x ", x.shape(), " and w ", w.shape, " at column ", column);
  check_same_device(x.device(), w.device(), "linear");
  const LinearArgs args{.x = x.data(),
                        .w = w.view(),
                        .bias = vector_view(bias, w.shape[0], x.device(), "linear: bias"),
                        .y = y.data_as<float>() + column,
                        .m = x.dim(0),
                        .n = w.shape[0],
                        .k = w.shape[1],
                        .x_stride = x.strides()[0],
                        .y_stride = y.strides()[0],
                        .x_dtype = x.dtype(),
                        .accumulate = accumulate};
  call_kernel(x.device(), &Kernels::linear, "linear", handle(stream), args);
}

Tensor linear(const Tensor& x, const Weight& w, const Tensor& bias) {
  check_dense(x, "linear: x");
  TRIVIUM_CHECK(x.rank() == 2 && w.shape.rank() == 2, "linear: x is ", x.shape(), " and w ", w.shape,
                ", expected [m, k] and [n, k]");
  Tensor y = Tensor::empty({x.dim(0), w.shape[0]}, Dtype::f32, x.device());
  linear(nullptr, x, w, bias, y);
  return y;
}

Tensor swiglu(const Tensor& x, float alpha, float limit) {
  check_dense(x, "swiglu: x");
  TRIVIUM_CHECK(x.dtype() == Dtype::f32 && x.rank() >= 1 && x.dim(-1) % 2 == 0, "swiglu: x is ", x.shape(),
                " ", x.dtype(), ", expected float32 [..., 2 dim]");
  const int64_t dim = x.dim(-1) / 2;
  Tensor y = Tensor::empty(with_last(x.shape(), dim), Dtype::f32, x.device());
  const SwigluArgs args{.x = x.data_as<float>(),
                        .y = y.data(),
                        .rows = dim ? y.numel() / dim : 0,
                        .dim = dim,
                        .alpha = alpha,
                        .limit = limit,
                        .y_dtype = Dtype::f32};
  call_kernel(x.device(), &Kernels::swiglu, "swiglu", nullptr, args);
  return y;
}

Tensor mxfp4_decode(const Tensor& blocks, const Tensor& scales) {
  check_dense(blocks, "mxfp4_decode: blocks");
  check_dense(scales, "mxfp4_decode: scales");
  const Weight w = Weight::mxfp4(blocks, scales, "mxfp4_decode");
  const int64_t cols = w.shape[-1];
  Tensor y = Tensor::empty(w.shape, Dtype::f32, blocks.device());
  const Mxfp4DecodeArgs args{.blocks = blocks.data_as<uint8_t>(),
                             .scales = scales.data_as<uint8_t>(),
                             .y = y.data_as<float>(),
                             .rows = cols ? y.numel() / cols : 0,
                             .cols = cols};
  call_kernel(blocks.device(), &Kernels::mxfp4_decode, "mxfp4_decode", nullptr, args);
  return y;
}

}  // namespace trivium::ops
