// The parts of the mLSTM's chunkwise passes as functions of their own.
#include "ops/mlstm.h"
#include "ops/mlstm_checks.h"

namespace trivium::ops {

using namespace mlstm;

namespace {

void check_whole_chunks(const Call& call) {
  TRIVIUM_CHECK(call.size.tokens % call.size.chunk == 0, call.op, ": ", call.size.tokens,
                " tokens are not a multiple of CHUNK_SIZE ", call.size.chunk);
}

void expect_states(const Call& call, const MlstmState& states) {
  const int64_t slots = call.size.num_chunks() + 1;
  call.expect(states.c, "matC_states", call.matrix(slots), Dtype::f32);
  call.expect(states.n, "vecN_states", call.vector(slots), Dtype::f32);
  call.expect(states.m, "scaMinter_states", {call.size.batch, call.size.heads, slots}, Dtype::f32);
}

}  // namespace

MlstmState mlstm_recurrent_fw_c(const Tensor& k, const Tensor& v, const Tensor& vec_b, const Tensor& vec_i,
                                const MlstmState& initial, const MlstmState& buffers,
                                const MlstmSettings& settings) {
  const Call call("mlstm.recurrent_fw_C", {}, k, v, settings);
  TRIVIUM_CHECK(v.defined(), call.op, ": matV is missing");
  check_whole_chunks(call);
  call.initial(initial, settings, "scaMinter_initial");
  const LogGates gates = log_gates(call, vec_i, vec_b, MlstmForget::cumulative, false);
  const int64_t slots = call.size.num_chunks() + 1;
  const auto receiver = [&](const Tensor& buffer, const char* name, const Shape& shape) {
    if (buffer.defined()) call.result(buffer, name, shape);
    return buffer.defined() ? buffer : call.floats(shape);
  };
  const MlstmState states{receiver(buffers.c, "matC_states", call.matrix(slots)),
                          receiver(buffers.n, "vecN_states", call.vector(slots)),
                          receiver(buffers.m, "scaMinter_states", {call.size.batch, call.size.heads, slots})};
  MlstmForwardArgs args{};
  args.k = k.data(), args.v = v.data();
  args.li = floats_of(gates.i), args.lf = floats_of(gates.f);
  args.c0 = floats_of(initial.c), args.n0 = floats_of(initial.n), args.m0 = floats_of(initial.m);
  args.c_states = floats_of(states.c), args.n_states = floats_of(states.n),
  args.m_states = floats_of(states.m);
  args.ks = strides_of(k), args.vs = strides_of(v);
  args.options = call.options(settings);
  args.parts = kMlstmStates;
  run_forward(call, args);
  return states;
}

MlstmOutput mlstm_parallel_fw_h(const Tensor& q, const Tensor& k, const Tensor& v, const MlstmState& states,
                                const Tensor& vec_i, const Tensor& vec_b, const MlstmSettings& settings) {
  const Call call("mlstm.parallel_fw_H", q, k, v, settings);
  TRIVIUM_CHECK(v.defined(), call.op, ": matV is missing");
  check_whole_chunks(call);
  expect_states(call, states);
  const LogGates gates = log_gates(call, vec_i, vec_b, MlstmForget::cumulative, false);
  MlstmOutput out{.h = Tensor::empty(v.shape(), call.dtype, call.device),
                  .n_out = call.floats(call.per_token()),
                  .nt = call.floats(call.per_token()),
                  .m_out = call.floats(call.per_token()),
                  .last = {},
                  .states = {}};
  MlstmForwardArgs args{};
  args.q = q.data(), args.k = k.data(), args.v = v.data();
  args.li = floats_of(gates.i), args.lf = floats_of(gates.f);
  args.c_states = floats_of(states.c), args.n_states = floats_of(states.n),
  args.m_states = floats_of(states.m);
  args.h = out.h.data(), args.den = floats_of(out.n_out), args.nt = floats_of(out.nt),
  args.m = floats_of(out.m_out);
  args.qs = strides_of(q), args.ks = strides_of(k), args.vs = strides_of(v), args.hs = strides_of(out.h);
  args.options = call.options(settings);
  args.parts = kMlstmOutput;
  run_forward(call, args);
  return out;
}

MlstmStateGradients mlstm_recurrent_bw_dc(const Tensor& q, const Tensor& log_f, const Tensor& m_states,
                                          const Tensor& m_out, const Tensor& dh, const Tensor& n_out,
                                          const Tensor& dc_last, const MlstmDenominatorPath& exact,
                                          const MlstmSettings& settings) {
  Call call("mlstm.recurrent_bw_dC", q, {}, {}, settings);
  TRIVIUM_CHECK(dh.rank() == 4, call.op, ": matDeltaH is ", dh.shape(), ", expected [B, NH, S, DHHV]");
  call.size.dv = dh.dim(3);
  const int64_t chunks = call.size.num_chunks();
  call.expect(dh, "matDeltaH", call.with_head(call.size.dv), call.dtype);
  call.expect(m_states, "scaM_states", {call.size.batch, call.size.heads, chunks + 1}, Dtype::f32);
  call.expect(m_out, "vecM_out", call.per_token(), Dtype::f32);
  call.expect(n_out, "vecN_out", call.per_token(), Dtype::f32);
  if (dc_last.defined()) call.expect(dc_last, "matDeltaC_last", call.matrix(), Dtype::f32);
  if (exact.h.defined()) {
    call.expect(exact.h, "matH", dh.shape(), call.dtype);
    TRIVIUM_CHECK(exact.h.is_contiguous(), call.op, ": matH is not contiguous");
    call.expect(exact.nt, "vecNt", call.per_token(), Dtype::f32);
    if (exact.dn_last.defined()) call.expect(exact.dn_last, "vecDeltaN_last", call.vector(), Dtype::f32);
  }
  const LogGates gates = log_gates(call, log_f, log_f, MlstmForget::log, false);
  MlstmStateGradients out{call.floats(call.matrix(chunks)),
                          call.floats(call.vector(chunks)),
                          {call.floats(call.matrix()), call.floats(call.vector()), {}}};
  const Tensor first_m = call.floats({call.size.batch, call.size.heads});
  MlstmBackwardArgs args{};
  args.q = q.data(), args.dh = dh.data();
  args.li = floats_of(gates.i), args.lf = floats_of(gates.f);
  args.m_states = floats_of(m_states), args.m = floats_of(m_out), args.den = floats_of(n_out);
  args.dc_last = floats_of(dc_last);
  args.dc_states = floats_of(out.dc), args.dn_states = floats_of(out.dn);
  args.dc0 = floats_of(out.initial.c), args.dn0 = floats_of(out.initial.n), args.dm0 = floats_of(first_m);
  args.exact = exact.h.defined();
  args.h = exact.h.data(), args.nt = floats_of(exact.nt), args.dn_last = floats_of(exact.dn_last);
  args.qs = strides_of(q), args.dhs = strides_of(dh);
  args.c_slots = chunks + 1, args.dc_first = 1;
  args.options = call.options(settings);
  args.parts = kMlstmStates;
  run_backward(call, args);
  return out;
}

MlstmGradients mlstm_parallel_bw_dqkv(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_f,
                                      const Tensor& vec_i, const MlstmState& states, const Tensor& dh,
                                      const Tensor& n_out, const Tensor& m_out,
                                      const MlstmStateGradients& after, const MlstmSettings& settings) {
  const Call call("mlstm.parallel_bw_dQKV", q, k, v, settings);
  TRIVIUM_CHECK(v.defined(), call.op, ": matV is missing");
  const int64_t chunks = call.size.num_chunks();
  const int64_t slots =
      states.c.rank() == 4 && states.c.dim(2) == chunks * call.size.dqk ? chunks : chunks + 1;
  call.expect(states.c, "matC_states", call.matrix(slots), Dtype::f32);
  call.expect(states.m, "scaM_states", {call.size.batch, call.size.heads, chunks + 1}, Dtype::f32);
  call.expect(dh, "matDeltaH", v.shape(), call.dtype);
  call.expect(n_out, "vecN_out", call.per_token(), Dtype::f32);
  call.expect(m_out, "vecM_out", call.per_token(), Dtype::f32);
  call.expect(after.dc, "matDeltaC_states", call.matrix(chunks), Dtype::f32);
  const bool exact = after.dn.defined();
  if (exact) call.expect(after.dn, "vecDeltaN_states", call.vector(chunks), Dtype::f32);
  if (exact) call.expect(states.n, "vecN_states", call.vector(slots), Dtype::f32);
  const LogGates gates = log_gates(call, vec_i, log_f, MlstmForget::log, false);
  MlstmGradients out{.dq = Tensor::empty(q.shape(), call.dtype, call.device),
                     .dk = Tensor::empty(k.shape(), call.dtype, call.device),
                     .dv = Tensor::empty(v.shape(), call.dtype, call.device),
                     .di = call.floats(call.per_token()),
                     .df = call.floats(call.per_token()),
                     .initial = {}};
  MlstmBackwardArgs args{};
  args.q = q.data(), args.k = k.data(), args.v = v.data(), args.dh = dh.data();
  args.li = floats_of(gates.i), args.lf = floats_of(gates.f);
  args.c_states = floats_of(states.c), args.m_states = floats_of(states.m);
  args.den = floats_of(n_out), args.m = floats_of(m_out);
  args.dc_states = floats_of(after.dc);
  args.exact = exact;
  if (exact) args.n_states = floats_of(states.n), args.dn_states = floats_of(after.dn);
  args.dq = out.dq.data(), args.dk = out.dk.data(), args.dv = out.dv.data();
  args.di = floats_of(out.di), args.df = floats_of(out.df);
  args.qs = strides_of(q), args.ks = strides_of(k), args.vs = strides_of(v), args.dhs = strides_of(dh);
  args.c_slots = slots, args.dc_first = 1;
  args.options = call.options(settings);
  args.parts = kMlstmOutput;
  run_backward(call, args);
  return out;
}

}  // namespace trivium::ops
