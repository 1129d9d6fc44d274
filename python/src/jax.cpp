// trivium._jax: the mLSTM as XLA FFI handlers, for trivium/jax.py. Built with TRIVIUM_JAX=ON only. One body
// serves all platforms; on a GPU it queues our backend's kernels on XLA's stream, with XLA's memory, and
// waits for nothing. That memory goes back to XLA, in the stream's order, when a handler returns, so a
// recorded command buffer could not repeat the call: the handlers do not claim to be compatible with one.
#include <pybind11/pybind11.h>

#include <array>

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

// XLA owns the memory for the time of the work.
Tensor as_tensor(const ffi::AnyBuffer& buffer, Device device) {
  const auto dims = buffer.dimensions();
  const Shape shape(std::span<const int64_t>(dims.begin(), dims.size()));
  return Tensor::wrap(buffer.untyped_data(), shape, dtype_of_xla(buffer.element_type()), device, nullptr);
}
Tensor as_tensor(const ffi::Result<ffi::AnyBuffer>& buffer, Device device) {
  return as_tensor(*buffer, device);
}

// All the arguments or all the results of a call.
template <size_t kCount, class Decoded>
std::array<Tensor, kCount> tensors_of(const Decoded& buffers, Device device) {
  TRIVIUM_CHECK(buffers.size() == kCount, "trivium.jax: XLA passes ", buffers.size(), " buffers, expected ",
                kCount);
  std::array<Tensor, kCount> out;
  for (size_t i = 0; i < kCount; ++i) {
    const auto buffer = buffers.template get<ffi::AnyBuffer>(i);
    TRIVIUM_CHECK(buffer.has_value(), "trivium.jax: XLA's buffer ", i, " cannot be read");
    out[i] = as_tensor(*buffer, device);
  }
  return out;
}

struct Call {
  Device device;
  ops::MlstmQueue queue;
  ffi::RemainingArgs arguments;
  ffi::RemainingRets results;
  ops::MlstmSettings settings;
};

void forward(const Call& call) {
  const auto [q, k, v, i, f, c0, n0, m0] = tensors_of<8>(call.arguments, call.device);
  const auto [h, n_out, nt, m_out, c, n, m] = tensors_of<7>(call.results, call.device);
  ops::mlstm_chunkwise_fw_into(
      {q, k, v, i, f}, {c0, n0, m0}, call.settings,
      {.h = h, .n_out = n_out, .nt = nt, .m_out = m_out, .last = {c, n, m}, .states = {}}, call.queue);
}

void backward(const Call& call, bool exact) {
  const auto [q, k, v, i, f, c0, n0, m0, n_out, nt, m_out, dh, dc, dn] =
      tensors_of<14>(call.arguments, call.device);
  const auto [dq, dk, dv, di, df, dc0, dn0, dm0] = tensors_of<8>(call.results, call.device);
  ops::mlstm_chunkwise_bw_into(
      {q, k, v, i, f}, {c0, n0, m0},
      {.n_out = n_out, .m_out = m_out, .nt = nt, .dh = dh, .dc_last = dc, .dn_last = dn, .states = {}},
      call.settings, exact ? ops::MlstmGradMode::exact : ops::MlstmGradMode::approx,
      {dq, dk, dv, di, df, {dc0, dn0, dm0}}, call.queue);
}

template <class Fn>
ffi::Error guarded(Fn&& run) {
  try {
    run();
    return ffi::Error::Success();
  } catch (const InvalidArgument& error) {
    return {ffi::ErrorCode::kInvalidArgument, error.what()};
  } catch (const OutOfMemory& error) {
    return {ffi::ErrorCode::kResourceExhausted, error.what()};
  } catch (const DeviceError& error) {
    return {ffi::ErrorCode::kUnavailable, concat("trivium.jax: ", error.what())};
  } catch (const std::exception& error) {
    return {ffi::ErrorCode::kInternal, error.what()};
  }
}

// Runs `body` for XLA's stream, device and memory; body(call).
template <class Body>
ffi::Error on_gpu(DeviceKind kind, void* native, int32_t ordinal, ffi::ScratchAllocator& scratch,
                  const Call& described, Body&& body) {
  return guarded([&] {
    Call call = described;
    call.device = {kind, ordinal};
    Stream stream(call.device, native);
    call.queue.stream = &stream;
    call.queue.allocate = [&](int64_t bytes) {
      constexpr size_t kAlignment = 16;  // the most that XLA promises
      const auto memory = scratch.Allocate(static_cast<size_t>(bytes), kAlignment);
      if (!memory)
        throw OutOfMemory(concat("trivium.jax: XLA has no ", (bytes + (1 << 20) - 1) >> 20,
                                 " MiB of work memory on ", call.device));
      return *memory;
    };
    body(call);
  });
}

using Arguments = ffi::RemainingArgs;
using Results = ffi::RemainingRets;

Call described(Arguments arguments, Results results, double qk_scale, double eps, int64_t chunk_size) {
  return {{}, {}, arguments, results, {.qk_scale = qk_scale, .eps = eps, .chunk_size = chunk_size}};
}

ffi::Error forward_cpu(Arguments a, Results r, double qk_scale, double eps, int64_t chunk_size) {
  return guarded([&] { forward(described(a, r, qk_scale, eps, chunk_size)); });
}
ffi::Error backward_cpu(Arguments a, Results r, double qk_scale, double eps, int64_t chunk_size, bool exact) {
  return guarded([&] { backward(described(a, r, qk_scale, eps, chunk_size), exact); });
}
template <DeviceKind kKind>
ffi::Error forward_gpu(void* stream, int32_t ordinal, ffi::ScratchAllocator scratch, Arguments a, Results r,
                       double qk_scale, double eps, int64_t chunk_size) {
  return on_gpu(kKind, stream, ordinal, scratch, described(a, r, qk_scale, eps, chunk_size), forward);
}
template <DeviceKind kKind>
ffi::Error backward_gpu(void* stream, int32_t ordinal, ffi::ScratchAllocator scratch, Arguments a, Results r,
                        double qk_scale, double eps, int64_t chunk_size, bool exact) {
  return on_gpu(kKind, stream, ordinal, scratch, described(a, r, qk_scale, eps, chunk_size),
                [&](const Call& call) { backward(call, exact); });
}

auto cpu_binding() { return ffi::Ffi::Bind(); }
auto gpu_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<void*>>()
      .Ctx<ffi::DeviceOrdinal>()
      .Ctx<ffi::ScratchAllocator>();
}
template <class Binding>
auto with_buffers(Binding binding) {
  return std::move(binding)
      .RemainingArgs()
      .RemainingRets()
      .template Attr<double>("qk_scale")
      .template Attr<double>("eps")
      .template Attr<int64_t>("chunk_size");
}

XLA_FFI_DEFINE_HANDLER(kForwardCpu, forward_cpu, with_buffers(cpu_binding()));
XLA_FFI_DEFINE_HANDLER(kBackwardCpu, backward_cpu, with_buffers(cpu_binding()).Attr<bool>("exact"));
template <DeviceKind kKind>
struct Gpu {
  XLA_FFI_DEFINE_HANDLER(kForward, forward_gpu<kKind>, with_buffers(gpu_binding()));
  XLA_FFI_DEFINE_HANDLER(kBackward, backward_gpu<kKind>,
                         with_buffers(gpu_binding()).template Attr<bool>("exact"));
};

py::dict pair(XLA_FFI_Handler* forward_handler, XLA_FFI_Handler* backward_handler) {
  py::dict out;
  out["trivium_mlstm_forward"] = py::capsule(reinterpret_cast<void*>(forward_handler));
  out["trivium_mlstm_backward"] = py::capsule(reinterpret_cast<void*>(backward_handler));
  return out;
}

}  // namespace

PYBIND11_MODULE(_jax, m) {
  m.doc() = "XLA FFI handlers of the trivium package; use them through `import trivium.jax`.";
  m.def("handlers", [] {
    py::dict out;  // by XLA's names of the platforms
    out["cpu"] = pair(kForwardCpu, kBackwardCpu);
    out["CUDA"] = pair(Gpu<DeviceKind::cuda>::kForward, Gpu<DeviceKind::cuda>::kBackward);
    out["ROCM"] = pair(Gpu<DeviceKind::hip>::kForward, Gpu<DeviceKind::hip>::kBackward);
    return out;
  });
}

}  // namespace trivium::python
