// What the mLSTM ops share: argument checks and the filling of argument blocks.
#pragma once

#include <string>

#include "core/registry.h"
#include "ops/mlstm.h"

namespace trivium::ops::mlstm {

// All of these throw InvalidArgument with `op` in front.
struct Call {
  const char* op;
  MlstmSizes size{};
  Dtype dtype = Dtype::f32;
  Device device;
  MlstmQueue queue{};

  // Shapes and types of q, k, v (k or v may be undefined) and the settings.
  Call(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const MlstmSettings& settings);

  void expect(const Tensor& t, const char* name, const Shape& shape, Dtype dtype) const;
  // All of it or nothing; `m_name` is what the function calls its m.
  void initial(const MlstmState& state, const MlstmSettings& settings,
               const char* m_name = "scaM_initial") const;
  // Tensors the caller gave for results.
  void result(const Tensor& t, const char* name, const Shape& shape, Dtype wanted = Dtype::f32) const;
  void results(const MlstmState& state, const char* const (&names)[3], int64_t slots) const;
  MlstmOptions options(const MlstmSettings& settings) const;
  void same_device(const Tensor& t, const char* name) const;

  Shape per_token() const { return {size.batch, size.heads, size.tokens}; }
  Shape with_head(int64_t dim) const { return {size.batch, size.heads, size.tokens, dim}; }
  Shape matrix(int64_t slots = 1) const { return {size.batch, size.heads, slots * size.dqk, size.dv}; }
  Shape vector(int64_t slots = 1) const { return {size.batch, size.heads, slots * size.dqk}; }
  Tensor floats(const Shape& shape) const;  // from the queue, if that has memory
  template <class Args>
  void run(Status (*Kernels::*entry)(StreamHandle*, const Args*), const char* name, const Args& args) const {
    call_kernel(device, entry, name, queue.stream ? queue.stream->handle() : nullptr, args);
  }
};

struct LogGates {
  Tensor i, f;  // f32 [B, NH, S]
};
LogGates log_gates(const Call& call, const Tensor& i, const Tensor& f, MlstmForget forget,
                   bool sigmoid_input);

MlstmStrides strides_of(const Tensor& t);
inline float* floats_of(const Tensor& t) { return t.data() ? t.data_as<float>() : nullptr; }
// An undefined tensor is; `or_empty`: -infinity too, the m of an empty state.
void check_finite(const Tensor& t, const char* op, const char* name, bool or_empty = false);
Tensor work_memory(const Call& call, int64_t floats);  // undefined on the CPU
void run_forward(const Call& call, MlstmForwardArgs& args);
void run_backward(const Call& call, MlstmBackwardArgs& args);

}  // namespace trivium::ops::mlstm
