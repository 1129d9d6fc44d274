// The whole passes of the mLSTM: chunkwise forward and backward, and the recurrence.
#include "ops/mlstm.h"

#include "ops/mlstm_checks.h"

namespace trivium::ops {

using namespace mlstm;

namespace {

void check_inputs_finite(const MlstmInputs& x, const char* op) {
  check_finite(x.q, op, "matQ"), check_finite(x.k, op, "matK"), check_finite(x.v, op, "matV");
  check_finite(x.i, op, "vecI"), check_finite(x.f, op, "vecF");
}
void check_state_finite(const MlstmState& s, const char* op, const char* const (&names)[3]) {
  check_finite(s.c, op, names[0]), check_finite(s.n, op, names[1]);
  check_finite(s.m, op, names[2], true);
}
void check_gradients_finite(const MlstmGradientInputs& g, const char* op) {
  check_finite(g.dh, op, "matDeltaH"), check_finite(g.n_out, op, "vecN_out");
  check_finite(g.m_out, op, "vecM_out", true), check_finite(g.nt, op, "vecNt");
  check_finite(g.dc_last, op, "matDeltaC_last"), check_finite(g.dn_last, op, "vecDeltaN_last");
  check_state_finite(g.states, op, {"matC_states", "vecN_states", "scaM_states"});
}
constexpr const char* kInitial[] = {"matC_initial", "vecN_initial", "scaM_initial"};

MlstmState empty_states(const Call& call, int64_t slots) {
  const Shape m =
      slots == 1 ? Shape{call.size.batch, call.size.heads} : Shape{call.size.batch, call.size.heads, slots};
  return {call.floats(call.matrix(slots)), call.floats(call.vector(slots)), call.floats(m)};
}

// m is 0 everywhere with the sigmoid input gate; the kernels want it stated.
Tensor zero_m(const Call& call) {
  return Tensor::zeros({call.size.batch, call.size.heads}, Dtype::f32, call.device);
}

// What is read on the host does not wait for the caller's stream.
void check_queue(const Call& call, const MlstmSettings& settings) {
  TRIVIUM_CHECK(!settings.check_finite || !call.queue.stream, call.op,
                ": check_finite cannot be had on a stream of the caller");
}

Call forward_call(const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
                  const MlstmQueue& queue) {
  Call call("mlstm.chunkwise_fw", x.q, x.k, x.v, settings);
  call.queue = queue;
  check_queue(call, settings);
  TRIVIUM_CHECK(x.v.defined(), call.op, ": matV is missing");
  call.initial(initial, settings);
  if (settings.check_finite) check_inputs_finite(x, call.op), check_state_finite(initial, call.op, kInitial);
  return call;
}

void forward(const Call& call, const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
             const MlstmOutput& out) {
  const LogGates gates = log_gates(call, x.i, x.f, MlstmForget::preactivation, settings.sigmoid_input_gate);
  MlstmState states = out.states;
  if (!states.c.defined() && is_gpu(call.device.kind))
    states = empty_states(call, call.size.num_chunks() + 1);
  const Tensor m0 = initial.c.defined() && !initial.m.defined() ? zero_m(call) : initial.m;
  MlstmForwardArgs args{.q = x.q.data(),
                        .k = x.k.data(),
                        .v = x.v.data(),
                        .li = floats_of(gates.i),
                        .lf = floats_of(gates.f),
                        .c0 = floats_of(initial.c),
                        .n0 = floats_of(initial.n),
                        .m0 = floats_of(m0),
                        .c_states = floats_of(states.c),
                        .n_states = floats_of(states.n),
                        .m_states = floats_of(states.m),
                        .c_last = floats_of(out.last.c),
                        .n_last = floats_of(out.last.n),
                        .m_last = floats_of(out.last.m),
                        .h = out.h.data(),
                        .den = floats_of(out.n_out),
                        .nt = floats_of(out.nt),
                        .m = floats_of(out.m_out),
                        .qs = strides_of(x.q),
                        .ks = strides_of(x.k),
                        .vs = strides_of(x.v),
                        .hs = strides_of(out.h),
                        .size = {},
                        .options = call.options(settings),
                        .parts = kMlstmStates | kMlstmOutput,
                        .dtype = {},
                        .workspace = nullptr};
  run_forward(call, args);
}

Call backward_call(const MlstmInputs& x, const MlstmState& initial, const MlstmGradientInputs& g,
                   const MlstmSettings& settings, MlstmGradMode mode, const MlstmQueue& queue) {
  Call call("mlstm.chunkwise_bw", x.q, x.k, x.v, settings);
  call.queue = queue;
  check_queue(call, settings);
  TRIVIUM_CHECK(x.v.defined(), call.op, ": matV is missing");
  call.initial(initial, settings);
  const int64_t slots = call.size.num_chunks() + 1;
  call.expect(g.n_out, "vecN_out", call.per_token(), Dtype::f32);
  call.expect(g.m_out, "vecM_out", call.per_token(), Dtype::f32);
  if (g.nt.defined()) call.expect(g.nt, "vecNt", call.per_token(), Dtype::f32);
  call.expect(g.dh, "matDeltaH", x.v.shape(), call.dtype);
  if (g.dc_last.defined()) call.expect(g.dc_last, "matDeltaC_last", call.matrix(), Dtype::f32);
  if (g.dn_last.defined()) call.expect(g.dn_last, "vecDeltaN_last", call.vector(), Dtype::f32);
  if (g.states.c.defined()) {
    call.expect(g.states.c, "matC_states", call.matrix(slots), Dtype::f32);
    TRIVIUM_CHECK(g.states.n.defined() || mode == MlstmGradMode::approx, call.op,
                  ": vecN_states is missing, which the exact gradient needs with matC_states");
    TRIVIUM_CHECK(g.states.m.defined(), call.op, ": scaM_states is missing, which matC_states needs");
  }
  if (g.states.n.defined()) call.expect(g.states.n, "vecN_states", call.vector(slots), Dtype::f32);
  if (g.states.m.defined())
    call.expect(g.states.m, "scaM_states", {call.size.batch, call.size.heads, slots}, Dtype::f32);
  if (settings.check_finite) {
    check_inputs_finite(x, call.op), check_state_finite(initial, call.op, kInitial);
    check_gradients_finite(g, call.op);
  }
  return call;
}

void backward(const Call& call, const MlstmInputs& x, const MlstmState& initial, const MlstmGradientInputs& g,
              const MlstmSettings& settings, MlstmGradMode mode, const MlstmGradients& out) {
  const LogGates gates = log_gates(call, x.i, x.f, MlstmForget::preactivation, settings.sigmoid_input_gate);
  const Tensor m0 = initial.c.defined() && !initial.m.defined() ? zero_m(call) : initial.m;
  const bool exact = mode == MlstmGradMode::exact;
  MlstmBackwardArgs args{.q = x.q.data(),
                         .k = x.k.data(),
                         .v = x.v.data(),
                         .dh = g.dh.data(),
                         .li = floats_of(gates.i),
                         .lf = floats_of(gates.f),
                         .c0 = floats_of(initial.c),
                         .n0 = floats_of(initial.n),
                         .m0 = floats_of(m0),
                         .c_states = floats_of(g.states.c),
                         .n_states = floats_of(g.states.n),
                         .m_states = floats_of(g.states.m),
                         .den = floats_of(g.n_out),
                         .m = floats_of(g.m_out),
                         .nt = floats_of(g.nt),
                         .dc_last = floats_of(g.dc_last),
                         .dn_last = exact ? floats_of(g.dn_last) : nullptr,
                         .dc_states = nullptr,
                         .dn_states = nullptr,
                         .dq = out.dq.data(),
                         .dk = out.dk.data(),
                         .dv = out.dv.data(),
                         .di = floats_of(out.di),
                         .df = floats_of(out.df),
                         .dc0 = floats_of(out.initial.c),
                         .dn0 = floats_of(out.initial.n),
                         .dm0 = floats_of(out.initial.m),
                         .workspace = nullptr,
                         .qs = strides_of(x.q),
                         .ks = strides_of(x.k),
                         .vs = strides_of(x.v),
                         .dhs = strides_of(g.dh),
                         .c_slots = call.size.num_chunks() + 1,
                         .dc_first = 0,
                         .size = {},
                         .options = call.options(settings),
                         .parts = kMlstmStates | kMlstmOutput,
                         .exact = exact,
                         .preactivation = 1,
                         .dtype = {}};
  run_backward(call, args);
}

}  // namespace

MlstmOutput mlstm_chunkwise_fw(const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
                               bool want_last, bool want_states) {
  const Call call = forward_call(x, initial, settings, {});
  MlstmOutput out{.h = Tensor::empty(x.v.shape(), call.dtype, call.device),
                  .n_out = call.floats(call.per_token()),
                  .nt = call.floats(call.per_token()),
                  .m_out = call.floats(call.per_token()),
                  .last = {},
                  .states = {}};
  if (want_last) out.last = empty_states(call, 1);
  if (want_states) out.states = empty_states(call, call.size.num_chunks() + 1);
  forward(call, x, initial, settings, out);
  if (settings.sigmoid_input_gate) out.last.m = {};
  return out;
}

void mlstm_chunkwise_fw_into(const MlstmInputs& x, const MlstmState& initial, const MlstmSettings& settings,
                             const MlstmOutput& out, const MlstmQueue& queue) {
  const Call call = forward_call(x, initial, settings, queue);
  call.result(out.h, "matH", x.v.shape(), call.dtype);
  call.result(out.n_out, "vecN_out", call.per_token());
  call.result(out.nt, "vecNt", call.per_token());
  call.result(out.m_out, "vecM_out", call.per_token());
  if (out.last.c.defined()) call.results(out.last, {"matC_last", "vecN_last", "scaM_last"}, 1);
  if (out.states.c.defined())
    call.results(out.states, {"matC_states", "vecN_states", "scaM_states"}, call.size.num_chunks() + 1);
  forward(call, x, initial, settings, out);
}

MlstmGradMode parse_mlstm_grad_mode(std::string_view text) {
  TRIVIUM_CHECK(text == "exact" || text == "approx", "mlstm: grad_mode is \"", printable(text),
                "\", expected \"exact\" or \"approx\"");
  return text == "exact" ? MlstmGradMode::exact : MlstmGradMode::approx;
}

MlstmGradients mlstm_chunkwise_bw(const MlstmInputs& x, const MlstmState& initial,
                                  const MlstmGradientInputs& g, const MlstmSettings& settings,
                                  MlstmGradMode mode) {
  const Call call = backward_call(x, initial, g, settings, mode, {});
  MlstmGradients out{.dq = Tensor::empty(x.q.shape(), call.dtype, call.device),
                     .dk = Tensor::empty(x.k.shape(), call.dtype, call.device),
                     .dv = Tensor::empty(x.v.shape(), call.dtype, call.device),
                     .di = call.floats(call.per_token()),
                     .df = call.floats(call.per_token()),
                     .initial = {}};
  if (initial.c.defined()) out.initial = empty_states(call, 1);
  backward(call, x, initial, g, settings, mode, out);
  if (settings.sigmoid_input_gate) out.initial.m = {};
  if (x.i.dtype() != Dtype::f32) out.di = out.di.to(x.i.dtype()), out.df = out.df.to(x.i.dtype());
  return out;
}

void mlstm_chunkwise_bw_into(const MlstmInputs& x, const MlstmState& initial, const MlstmGradientInputs& g,
                             const MlstmSettings& settings, MlstmGradMode mode, const MlstmGradients& out,
                             const MlstmQueue& queue) {
  const Call call = backward_call(x, initial, g, settings, mode, queue);
  call.result(out.dq, "matDeltaQ", x.q.shape(), call.dtype);
  call.result(out.dk, "matDeltaK", x.k.shape(), call.dtype);
  call.result(out.dv, "matDeltaV", x.v.shape(), call.dtype);
  call.result(out.di, "vecDeltaI", call.per_token());
  call.result(out.df, "vecDeltaF", call.per_token());
  if (initial.c.defined())
    call.results(out.initial, {"matDeltaC_initial", "vecDeltaN_initial", "scaDeltaM_initial"}, 1);
  backward(call, x, initial, g, settings, mode, out);
}

MlstmRecurrentOutput mlstm_recurrent(const MlstmInputs& x, MlstmState& state, const MlstmSettings& settings) {
  const Call call("mlstm.recurrent", x.q, x.k, x.v, settings);
  TRIVIUM_CHECK(x.v.defined(), call.op, ": matV is missing");
  TRIVIUM_CHECK(state.c.dtype() == Dtype::f32 || state.c.dtype() == Dtype::bf16, call.op, ": matC is ",
                state.c.dtype(), ", expected float32 or bfloat16");
  call.expect(state.c, "matC", call.matrix(), state.c.dtype());
  call.expect(state.n, "vecN", call.vector(), Dtype::f32);
  TRIVIUM_CHECK(!settings.sigmoid_input_gate || !state.m.defined(), call.op,
                ": scaM is given, but with the sigmoid input gate there is no m");
  const Tensor m = settings.sigmoid_input_gate ? zero_m(call) : state.m;
  call.expect(m, "scaM", {call.size.batch, call.size.heads}, Dtype::f32);
  TRIVIUM_CHECK(state.c.is_contiguous(), call.op, ": matC is not contiguous");
  TRIVIUM_CHECK(!state.c.read_only() && !state.n.read_only() && !m.read_only(), call.op,
                ": the state is read-only, but it is updated in place");
  if (settings.check_finite)
    check_inputs_finite(x, call.op), check_state_finite(state, call.op, {"matC", "vecN", "scaM"});
  const LogGates gates = log_gates(call, x.i, x.f, MlstmForget::preactivation, settings.sigmoid_input_gate);
  MlstmRecurrentOutput out{Tensor::empty(x.v.shape(), call.dtype, call.device), call.floats(call.per_token()),
                           call.floats(call.per_token())};
  const Tensor workspace = work_memory(call, mlstm_recurrent_workspace(call.size));
  const MlstmRecurrentArgs args{.q = x.q.data(),
                                .k = x.k.data(),
                                .v = x.v.data(),
                                .li = floats_of(gates.i),
                                .lf = floats_of(gates.f),
                                .c = state.c.data(),
                                .n = floats_of(state.n),
                                .m = floats_of(m),
                                .h = out.h.data(),
                                .den = floats_of(out.n_out),
                                .m_out = floats_of(out.m_out),
                                .qs = strides_of(x.q),
                                .ks = strides_of(x.k),
                                .vs = strides_of(x.v),
                                .hs = strides_of(out.h),
                                .size = call.size,
                                .options = call.options(settings),
                                .dtype = call.dtype,
                                .c_dtype = state.c.dtype(),
                                .workspace = floats_of(workspace)};
  if (call.size.batch * call.size.heads > 0)
    call_kernel(call.device, &Kernels::mlstm_recurrent, "mlstm_recurrent", nullptr, args);
  return out;
}

}  // namespace trivium::ops
