#include "ops/mlstm_checks.h"

#include <cmath>

namespace trivium::ops::mlstm {
namespace {

bool is_number_type(Dtype d) { return d == Dtype::f32 || d == Dtype::bf16 || d == Dtype::f16; }

void check_settings(const char* op, const MlstmSettings& s, Device device) {
  const int64_t L = s.chunk_size;
  TRIVIUM_CHECK(L >= 1, op, ": CHUNK_SIZE is ", L, ", expected at least 1");
  TRIVIUM_CHECK(!is_gpu(device.kind) || (L >= 16 && L <= 1024 && (L & (L - 1)) == 0), op, ": CHUNK_SIZE is ",
                L, ", expected 16, 32, 64, 128, 256, 512 or 1024 on ", device);
  TRIVIUM_CHECK(s.eps >= 0 && std::isfinite(s.eps), op, ": EPS is ", s.eps, ", expected a number >= 0");
  TRIVIUM_CHECK(!s.qk_scale || std::isfinite(*s.qk_scale), op, ": qk_scale is ", s.qk_scale.value_or(0),
                ", expected a finite number");
  TRIVIUM_CHECK(s.m_floor < 88, op, ": m_floor is ", s.m_floor, ", expected below 88");
  TRIVIUM_CHECK(s.normalize || s.sigmoid_input_gate, op,
                ": normalize can be false only with the sigmoid input gate");
}

void check_matrix(const char* op, const Tensor& t, const char* name) {
  TRIVIUM_CHECK(t.defined() && t.rank() == 4, op, ": ", name, " is ", t.shape(), ", expected [B, NH, S, ",
                name[3] == 'V' || name[3] == 'D' ? "DHHV]" : "DHQK]");
  TRIVIUM_CHECK(is_number_type(t.dtype()), op, ": ", name, " is ", t.dtype(),
                ", expected float32, bfloat16 or float16");
  TRIVIUM_CHECK(t.dim(3) >= 1, op, ": ", name, " is ", t.shape(), ", its head dimension is 0");
  TRIVIUM_CHECK(t.numel() == 0 || t.strides()[3] == 1 || t.dim(3) == 1, op, ": the last dimension of ", name,
                " is not contiguous");
}

}  // namespace

Call::Call(const char* name, const Tensor& q, const Tensor& k, const Tensor& v, const MlstmSettings& settings)
    : op(name) {
  const Tensor& first = q.defined() ? q : k;
  check_matrix(op, first, q.defined() ? "matQ" : "matK");
  device = first.device(), dtype = first.dtype();
  size = {first.dim(0), first.dim(1), first.dim(2), first.dim(3), 1, settings.chunk_size};
  TRIVIUM_CHECK(size.tokens >= 1, op, ": the sequence is empty (", q.defined() ? "matQ" : "matK", " is ",
                first.shape(), ")");
  check_settings(op, settings, device);
  TRIVIUM_CHECK(!settings.strict_chunks || size.tokens % size.chunk == 0, op, ": ", size.tokens,
                " tokens are not a multiple of CHUNK_SIZE ", size.chunk, ", which strict_chunks asks for");
  if (k.defined() || !q.defined()) expect(k, "matK", first.shape(), dtype);
  if (!v.defined()) return;
  check_matrix(op, v, "matV");
  size.dv = v.dim(3);
  expect(v, "matV", with_head(size.dv), dtype);
}

void Call::same_device(const Tensor& t, const char* name) const {
  TRIVIUM_CHECK(t.device() == device, op, ": ", name, " is on ", t.device(), ", the other tensors on ",
                device);
}

void Call::expect(const Tensor& t, const char* name, const Shape& shape, Dtype wanted) const {
  TRIVIUM_CHECK(t.defined(), op, ": ", name, " is missing");
  TRIVIUM_CHECK(t.shape() == shape, op, ": ", name, " is ", t.shape(), ", expected ", shape);
  TRIVIUM_CHECK(t.dtype() == wanted, op, ": ", name, " is ", t.dtype(), ", expected ", wanted);
  same_device(t, name);
  TRIVIUM_CHECK(t.numel() == 0 || shape.rank() == 4 ? t.numel() == 0 || t.strides()[3] == 1 || t.dim(3) == 1
                                                    : t.is_contiguous(),
                op, ": ", name, " is not contiguous");
}

void Call::initial(const MlstmState& state, const MlstmSettings& settings, const char* m_name) const {
  const bool m_given = state.m.defined();
  TRIVIUM_CHECK(!settings.sigmoid_input_gate || !m_given, op, ": ", m_name,
                " is given, but with the sigmoid input gate there is no m");
  const int given = state.c.defined() + state.n.defined() + (m_given || settings.sigmoid_input_gate);
  if (!state.c.defined() && !state.n.defined() && !m_given) return;
  TRIVIUM_CHECK(given == 3, op, ": matC_initial, vecN_initial and ", m_name, " are given only in part (",
                !state.c.defined()   ? "matC_initial"
                : !state.n.defined() ? "vecN_initial"
                                     : m_name,
                " is missing)");
  expect(state.c, "matC_initial", matrix(), Dtype::f32);
  expect(state.n, "vecN_initial", vector(), Dtype::f32);
  TRIVIUM_CHECK(state.c.is_contiguous(), op, ": matC_initial is not contiguous");
  if (m_given) expect(state.m, m_name, {size.batch, size.heads}, Dtype::f32);
}

void Call::result(const Tensor& t, const char* name, const Shape& shape, Dtype wanted) const {
  expect(t, name, shape, wanted);
  TRIVIUM_CHECK(t.is_contiguous() && !t.read_only(), op, ": ", name,
                " receives a result, but it is strided or read-only");
}

void Call::results(const MlstmState& state, const char* const (&names)[3], int64_t slots) const {
  result(state.c, names[0], matrix(slots));
  result(state.n, names[1], vector(slots));
  result(state.m, names[2],
         slots == 1 ? Shape{size.batch, size.heads} : Shape{size.batch, size.heads, slots});
}

MlstmOptions Call::options(const MlstmSettings& s) const {
  return {.scale = static_cast<float>(s.qk_scale.value_or(1 / std::sqrt(static_cast<double>(size.dqk)))),
          .eps = static_cast<float>(s.eps),
          .m_floor = static_cast<float>(s.m_floor),
          .sigmoid_input = s.sigmoid_input_gate,
          .normalize = s.normalize};
}

LogGates log_gates(const Call& call, const Tensor& i, const Tensor& f, MlstmForget forget,
                   bool sigmoid_input) {
  Shape shape = call.per_token();
  if (forget == MlstmForget::cumulative)
    shape = {call.size.batch, call.size.heads, call.size.num_chunks(), call.size.chunk};
  const char* f_name = forget == MlstmForget::cumulative ? "vecB" : "vecF";
  const char* i_name = &i == &f ? f_name : "vecI";  // a part that takes no input gate
  TRIVIUM_CHECK(is_number_type(i.dtype()), call.op, ": ", i_name, " is ", i.dtype(),
                ", expected float32, bfloat16 or float16");
  call.expect(i, i_name, shape, i.dtype());
  call.expect(f, f_name, shape, i.dtype());
  TRIVIUM_CHECK(i.is_contiguous() && f.is_contiguous(), call.op, ": the gates are not contiguous");
  LogGates out{call.floats(call.per_token()), call.floats(call.per_token())};
  const MlstmGatesArgs args{.i = i.data(),
                            .f = f.data(),
                            .li = out.i.data_as<float>(),
                            .lf = out.f.data_as<float>(),
                            .rows = call.size.batch * call.size.heads,
                            .tokens = call.size.tokens,
                            .chunk = call.size.chunk,
                            .forget = forget,
                            .sigmoid_input = sigmoid_input,
                            .dtype = i.dtype()};
  call.run(&Kernels::mlstm_gates, "mlstm_gates", args);
  return out;
}

Tensor Call::floats(const Shape& shape) const {
  if (!queue.allocate) return Tensor::empty(shape, Dtype::f32, device);
  int64_t bytes = size_of(Dtype::f32);
  for (const int64_t extent : shape) bytes *= extent;
  return Tensor::wrap(bytes > 0 ? queue.allocate(bytes) : nullptr, shape, Dtype::f32, device, nullptr);
}

MlstmStrides strides_of(const Tensor& t) {
  if (t.rank() != 4) return {};
  return {t.strides()[0], t.strides()[1], t.strides()[2]};
}

void check_finite(const Tensor& t, const char* op, const char* name, bool or_empty) {
  if (!t.defined() || !is_number_type(t.dtype())) return;  // other types are refused where they are expected
  const Tensor host = t.to(Device{}).contiguous().to(Dtype::f32);
  const float* values = host.data_as<float>();
  for (int64_t i = 0; i < host.numel(); ++i)
    TRIVIUM_CHECK(std::isfinite(values[i]) || (or_empty && values[i] == -INFINITY), op, ": ", name, " holds ",
                  values[i], " at element ", i, ", expected finite numbers");
}

Tensor work_memory(const Call& call, int64_t floats) {
  return is_gpu(call.device.kind) ? call.floats({floats}) : Tensor();
}

void run_forward(const Call& call, MlstmForwardArgs& args) {
  args.size = call.size, args.dtype = call.dtype;
  if (call.size.batch * call.size.heads == 0) return;
  const Tensor workspace = work_memory(call, mlstm_forward_workspace(call.size));
  args.workspace = floats_of(workspace);
  call.run(&Kernels::mlstm_forward, "mlstm_forward", args);
}

void run_backward(const Call& call, MlstmBackwardArgs& args) {
  args.size = call.size, args.dtype = call.dtype;
  if (call.size.batch * call.size.heads == 0) return;
  const bool gpu = is_gpu(call.device.kind);
  const int64_t slots = call.size.num_chunks() + 1;
  Tensor c, n, m, dc, dn;  // alive until the kernel has finished
  if (gpu && (args.parts & kMlstmOutput) &&
      !(args.c_states && args.m_states && (args.n_states || !args.exact))) {
    c = call.floats(call.matrix(slots)), n = call.floats(call.vector(slots));
    m = call.floats({call.size.batch, call.size.heads, slots});
    MlstmForwardArgs states{};
    states.k = args.k, states.v = args.v, states.li = args.li, states.lf = args.lf;
    states.c0 = args.c0, states.n0 = args.n0, states.m0 = args.m0;
    states.c_states = floats_of(c), states.n_states = floats_of(n), states.m_states = floats_of(m);
    states.ks = args.ks, states.vs = args.vs, states.options = args.options, states.parts = kMlstmStates;
    run_forward(call, states);
    args.c_states = states.c_states, args.n_states = states.n_states, args.m_states = states.m_states;
    args.c_slots = slots;
  }
  if (gpu && !args.dc_states) {
    dc = call.floats(call.matrix(slots)), dn = call.floats(call.vector(slots));
    args.dc_states = floats_of(dc), args.dn_states = floats_of(dn);
  }
  const Tensor workspace = work_memory(call, mlstm_backward_workspace(call.size));
  args.workspace = floats_of(workspace);
  call.run(&Kernels::mlstm_backward, "mlstm_backward", args);
}

}  // namespace trivium::ops::mlstm
