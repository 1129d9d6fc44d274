// trivium._jax: the mLSTM as XLA FFI handlers on the CPU, for trivium/jax.py. Built with TRIVIUM_JAX=ON only.
#include <pybind11/pybind11.h>

#include <cstring>
#include <functional>

#include "ops/mlstm.h"
#include "xla/ffi/api/ffi.h"

namespace trivium::python {
namespace {

namespace py = pybind11;
namespace ffi = xla::ffi;

Dtype dtype_of_xla(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32:
      return Dtype::f32;
    case ffi::DataType::BF16:
      return Dtype::bf16;
    case ffi::DataType::F16:
      return Dtype::f16;
    default:
      throw InvalidArgument("trivium.jax: an array is neither float32 nor bfloat16 nor float16");
  }
}

// XLA owns the memory for the time of the call.
Tensor as_tensor(ffi::AnyBuffer buffer) {
  const auto dims = buffer.dimensions();
  const Shape shape(std::span<const int64_t>(dims.begin(), dims.size()));
  return Tensor::wrap(buffer.untyped_data(), shape, dtype_of_xla(buffer.element_type()), Device{}, nullptr);
}

void copy_to(const Tensor& from, ffi::Result<ffi::AnyBuffer> to) {
  TRIVIUM_CHECK(static_cast<size_t>(from.nbytes()) == to->size_bytes(), "trivium.jax: a result has ",
                from.nbytes(), " bytes, expected ", to->size_bytes());
  std::memcpy(to->untyped_data(), from.data(), to->size_bytes());
}

ffi::Error guarded(const std::function<void()>& run) {
  try {
    run();
    return ffi::Error::Success();
  } catch (const InvalidArgument& error) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
}

ops::MlstmSettings settings(double qk_scale, double eps, int64_t chunk_size) {
  return {.qk_scale = qk_scale, .eps = eps, .chunk_size = chunk_size};
}

ffi::Error forward(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer i, ffi::AnyBuffer f,
                   ffi::AnyBuffer c0, ffi::AnyBuffer n0, ffi::AnyBuffer m0, ffi::Result<ffi::AnyBuffer> h,
                   ffi::Result<ffi::AnyBuffer> n_out, ffi::Result<ffi::AnyBuffer> nt,
                   ffi::Result<ffi::AnyBuffer> m_out, ffi::Result<ffi::AnyBuffer> c,
                   ffi::Result<ffi::AnyBuffer> n, ffi::Result<ffi::AnyBuffer> m, double qk_scale, double eps,
                   int64_t chunk_size) {
  return guarded([&] {
    const auto out = ops::mlstm_chunkwise_fw(
        {as_tensor(q), as_tensor(k), as_tensor(v), as_tensor(i), as_tensor(f)},
        {as_tensor(c0), as_tensor(n0), as_tensor(m0)}, settings(qk_scale, eps, chunk_size), true, false);
    copy_to(out.h, h), copy_to(out.n_out, n_out), copy_to(out.nt, nt), copy_to(out.m_out, m_out);
    copy_to(out.last.c, c), copy_to(out.last.n, n), copy_to(out.last.m, m);
  });
}

ffi::Error backward(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer i, ffi::AnyBuffer f,
                    ffi::AnyBuffer c0, ffi::AnyBuffer n0, ffi::AnyBuffer m0, ffi::AnyBuffer n_out,
                    ffi::AnyBuffer nt, ffi::AnyBuffer m_out, ffi::AnyBuffer dh, ffi::AnyBuffer dc,
                    ffi::AnyBuffer dn, ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                    ffi::Result<ffi::AnyBuffer> dv, ffi::Result<ffi::AnyBuffer> di,
                    ffi::Result<ffi::AnyBuffer> df, ffi::Result<ffi::AnyBuffer> dc0,
                    ffi::Result<ffi::AnyBuffer> dn0, ffi::Result<ffi::AnyBuffer> dm0, double qk_scale,
                    double eps, int64_t chunk_size, bool exact) {
  return guarded([&] {
    const auto out = ops::mlstm_chunkwise_bw(
        {as_tensor(q), as_tensor(k), as_tensor(v), as_tensor(i), as_tensor(f)},
        {as_tensor(c0), as_tensor(n0), as_tensor(m0)},
        {.n_out = as_tensor(n_out),
         .m_out = as_tensor(m_out),
         .nt = as_tensor(nt),
         .dh = as_tensor(dh),
         .dc_last = as_tensor(dc),
         .dn_last = as_tensor(dn)},
        settings(qk_scale, eps, chunk_size), exact ? ops::MlstmGradMode::exact : ops::MlstmGradMode::approx);
    copy_to(out.dq, dq), copy_to(out.dk, dk), copy_to(out.dv, dv), copy_to(out.di, di), copy_to(out.df, df);
    copy_to(out.initial.c, dc0), copy_to(out.initial.n, dn0), copy_to(out.initial.m, dm0);
  });
}

XLA_FFI_DEFINE_HANDLER(kForward, forward,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("qk_scale")
                           .Attr<double>("eps")
                           .Attr<int64_t>("chunk_size"));

XLA_FFI_DEFINE_HANDLER(kBackward, backward,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("qk_scale")
                           .Attr<double>("eps")
                           .Attr<int64_t>("chunk_size")
                           .Attr<bool>("exact"));

}  // namespace

PYBIND11_MODULE(_jax, m) {
  m.doc() = "XLA FFI handlers of the trivium package; use them through `import trivium.jax`.";
  m.def("handlers", [] {
    py::dict out;
    out["trivium_mlstm_forward"] = py::capsule(reinterpret_cast<void*>(+kForward));
    out["trivium_mlstm_backward"] = py::capsule(reinterpret_cast<void*>(+kBackward));
    return out;
  });
}

}  // namespace trivium::python
