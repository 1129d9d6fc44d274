// mLSTM forward: float64 results of tests/oracles/mlstm_oracle.py, and properties the definition implies.
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

using ops::mlstm_chunkwise_fw;
using ops::mlstm_recurrent;
using ops::MlstmInputs;
using ops::MlstmSettings;
using ops::MlstmState;

struct Limits {
  Dtype dtype;
  double h, states;
};
constexpr Limits kLimits[] = {{Dtype::f32, 2e-6, 2e-6}, {Dtype::bf16, 6e-3, 6e-3}, {Dtype::f16, 1e-3, 2e-3}};

// States are compared as C exp(m): a float32 m alone rounds C by up to |m| 2^-24.
void expect_state(const Tensor& got, const Tensor& got_m, std::vector<double> want,
                  const std::vector<double>& want_m, double bound, const std::string& what) {
  auto values = doubles_of(got);
  const auto m = doubles_of(got_m);
  ASSERT_EQ(values.size(), want.size()) << what;
  ASSERT_EQ(m.size(), want_m.size()) << what;
  const size_t per_m = values.size() / m.size();
  double errors = 0, squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double w = want[i], v = values[i] * std::exp(m[i / per_m] - want_m[i / per_m]);
    errors += (v - w) * (v - w), squares += w * w;
  }
  EXPECT_LE(std::sqrt(errors), bound * std::sqrt(squares)) << what;
}

TEST(MlstmForward, MatchesTheOracle) {
  for (const char* name : kMlstmCases)
    for (const Limits& limits : kLimits) {
      const std::string what = concat(name, " ", limits.dtype);
      const MlstmCase c = mlstm_case(name, limits.dtype);
      const auto out = mlstm_chunkwise_fw(c.x, c.initial, {.chunk_size = c.chunk}, true, true);
      expect_relative(out.h, mlstm_expected(name, "h"), limits.h, what + " h");
      expect_relative(out.n_out, mlstm_expected(name, "den"), limits.h, what + " n_out");
      expect_relative(out.m_out, mlstm_expected(name, "m"), 1e-6, what + " m_out");
      expect_relative(out.states.m, mlstm_expected(name, "m_states"), 1e-6, what + " states m");
      const auto want_m = mlstm_expected(name, "m_states");
      expect_state(out.states.c, out.states.m, mlstm_expected(name, "C_states"), want_m, limits.states,
                   what + " C");
      expect_state(out.states.n, out.states.m, mlstm_expected(name, "n_states"), want_m, limits.states,
                   what + " n");
    }
}

TEST(MlstmForward, LastStateIsTheLastOfAllStates) {
  for (const char* name : {"plain", "odd", "no_state"}) {
    const MlstmCase c = mlstm_case(name);
    const auto out = mlstm_chunkwise_fw(c.x, c.initial, {.chunk_size = c.chunk}, true, true);
    const auto all = values_of<float>(out.states.c), last = values_of<float>(out.last.c);
    const auto heads = static_cast<size_t>(c.x.q.dim(0) * c.x.q.dim(1));
    const size_t stride = all.size() / heads, size = last.size() / heads;
    for (size_t h = 0; h < heads; ++h)
      expect_same_bits(std::span(all).subspan((h + 1) * stride - size, size),
                       std::span(last).subspan(h * size, size), name);
  }
}

TEST(MlstmForward, StatesInsideTheChunksDoNotMatter) {
  // Asking for states changes where the work is cut, not what is computed.
  const MlstmCase c = mlstm_case("odd");
  const auto with = mlstm_chunkwise_fw(c.x, c.initial, {.chunk_size = 16}, true, true);
  const auto without = mlstm_chunkwise_fw(c.x, c.initial, {.chunk_size = 16}, true, false);
  expect_relative(with.h, doubles_of(without.h), 2e-6, "h");
  expect_relative(with.last.c, doubles_of(without.last.c), 2e-6, "C");
}

// Relative error of h over the rows whose denominator cancels, or over the others. It cancels where it is
// below a tenth of scale |q| |n|: the golden file lets no gradient enter there.
double error_of_rows(const Tensor& h, const std::string& name, bool cancelling) {
  const auto got = doubles_of(h), want = mlstm_expected(name, "h"), dh = mlstm_expected(name, "dH");
  const auto width = static_cast<size_t>(h.dim(3));
  double errors = 0, squares = 0;
  for (size_t row = 0; row < got.size(); row += width) {
    const auto begin = dh.begin() + static_cast<std::ptrdiff_t>(row);
    const bool zero = std::all_of(begin, begin + h.dim(3), [](double v) { return v == 0; });
    for (size_t i = row; zero == cancelling && i < row + width; ++i)
      errors += (got[i] - want[i]) * (got[i] - want[i]), squares += want[i] * want[i];
  }
  return squares > 0 ? std::sqrt(errors / squares) : std::sqrt(errors);
}

TEST(MlstmForward, RecurrenceMatchesTheOracle) {
  for (const char* name : kMlstmCases)
    for (const Limits& limits : kLimits) {
      const MlstmCase c = mlstm_case(name, limits.dtype);
      MlstmState state = c.initial.c.rank() ? copy_of(c.initial) : zero_state(c.x);
      const auto out = mlstm_recurrent(c.x, state, {});
      EXPECT_LE(error_of_rows(out.h, name, false), limits.h) << name << ' ' << limits.dtype;
      // The worst of all cases is a row of "extreme": scale |q| |n| is 723 times its denominator, and so are
      // the roundings of n.
      constexpr double kWorst = 723 * 0x1p-24;
      EXPECT_LE(error_of_rows(out.h, name, true), limits.h + kWorst) << name << ' ' << limits.dtype;
    }
}

TEST(MlstmForward, EveryChunkSizeGivesTheSameOutputs) {
  const MlstmInputs x = mlstm_inputs(1, 2, 200, 16, 24, 1);
  const MlstmSettings off{.m_floor = -INFINITY};
  MlstmState state = zero_state(x);
  const auto want = mlstm_recurrent(x, state, {});
  std::vector<int64_t> sizes = {16, 32, 64, 128, 256};
  if (!is_gpu(test_device().kind)) sizes.insert(sizes.end(), {1, 7, 100});
  for (const int64_t chunk : sizes) {
    MlstmSettings settings = off;
    settings.chunk_size = chunk;
    const auto out = mlstm_chunkwise_fw(x, {}, settings, true, true);
    expect_relative(out.h, doubles_of(want.h), 3e-6, concat("h, chunks of ", chunk));
    expect_relative(out.m_out, doubles_of(want.m_out), 1e-6, concat("m, chunks of ", chunk));
    expect_relative(out.last.c, doubles_of(state.c), 4e-6, concat("C, chunks of ", chunk));
    EXPECT_EQ(out.states.m.dim(2), (200 + chunk - 1) / chunk + 1);
  }
}

TEST(MlstmForward, AnyLengthMatchesTheRecurrence) {
  std::vector<int64_t> lengths = {1, 2, 15, 16, 17, 63, 64, 65, 127};
  if (!emulated()) lengths.insert(lengths.end(), {256, 500, 1000, 4096});
  for (const int64_t tokens : lengths) {
    const MlstmInputs x = mlstm_inputs(1, 1, tokens, 24, 40, static_cast<uint64_t>(tokens));
    MlstmState state = zero_state(x);
    const auto want = mlstm_recurrent(x, state, {});
    const auto out = mlstm_chunkwise_fw(x, {}, {}, true, false);
    expect_relative(out.h, doubles_of(want.h), 4e-6, concat(tokens, " tokens"));
    expect_relative(out.last.c, doubles_of(state.c), 4e-6, concat(tokens, " tokens, C"));
  }
}

TEST(MlstmForward, HeadDimensionsAreIndependent) {
  std::vector<std::pair<int64_t, int64_t>> dims = {{16, 16}, {24, 48}, {128, 64}, {1, 1}, {3, 5}};
  if (!emulated()) dims.insert(dims.end(), {{48, 96}, {64, 128}, {256, 512}, {512, 512}, {256, 1024}});
  for (const auto& [dqk, dv] : dims) {
    const MlstmInputs x = mlstm_inputs(1, 3, emulated() ? 20 : 70, dqk, dv, 5);
    MlstmState state = zero_state(x);
    const auto want = mlstm_recurrent(x, state, {});
    const auto out = mlstm_chunkwise_fw(x, {}, {.chunk_size = 16}, true, false);
    expect_relative(out.h, doubles_of(want.h), 4e-6, concat(dqk, " and ", dv));
    expect_relative(out.last.c, doubles_of(state.c), 4e-6, concat(dqk, " and ", dv, ", C"));
  }
}

TEST(MlstmForward, PrefillHandsItsStateToTheStep) {
  constexpr int64_t kChunk = 16;
  const int64_t longest = emulated() ? kChunk + 2 : 2 * kChunk + 3, steps = emulated() ? 3 : 32;
  const MlstmInputs x = mlstm_inputs(2, 2, longest + steps, 16, 24, 7);
  MlstmState whole = zero_state(x);
  const auto want = mlstm_recurrent(x, whole, {});
  for (int64_t prompt = 1; prompt <= longest; ++prompt) {
    const auto prefill = mlstm_chunkwise_fw(tokens_of(x, 0, prompt), {}, {.chunk_size = kChunk}, true, false);
    MlstmState state = prefill.last;
    for (int64_t t = prompt; t < prompt + steps; ++t) {
      const auto step = mlstm_recurrent(tokens_of(x, t, t + 1), state, {});
      expect_relative(step.h, doubles_of(tokens_of(want.h, t, t + 1)), 1e-5,
                      concat("prompt ", prompt, ", token ", t));
    }
  }
}

TEST(MlstmForward, StateIsPassedBetweenCalls) {
  const int64_t tokens = 64;
  const MlstmInputs x = mlstm_inputs(1, 2, tokens, 16, 32, 9);
  const auto whole = mlstm_chunkwise_fw(x, {}, {.chunk_size = 16}, true, false);
  for (const int64_t calls : {2, 4, 64}) {
    MlstmState state;
    for (int64_t c = 0; c < calls; ++c) {
      const int64_t begin = c * tokens / calls, end = (c + 1) * tokens / calls;
      const auto part = mlstm_chunkwise_fw(tokens_of(x, begin, end), state, {.chunk_size = 16}, true, false);
      expect_relative(part.h, doubles_of(tokens_of(whole.h, begin, end)), 2e-5,
                      concat(calls, " calls, call ", c));
      state = part.last;
    }
    expect_relative(state.c, doubles_of(whole.last.c), 4e-6, concat(calls, " calls"));
  }
}

TEST(MlstmForward, LaterTokensChangeNothingBefore) {
  MlstmInputs x = mlstm_inputs(1, 1, 50, 16, 24, 11);
  const auto before = values_of<float>(mlstm_chunkwise_fw(x, {}, {.chunk_size = 16}, false, false).h);
  // Matrix units multiply the masked half of a tile by zero, so only the CPU keeps a NaN in its place.
  const float changed_to = is_gpu(test_device().kind) ? 1e4f : NAN;
  for (const int64_t t : {0, 5, 15, 16, 20, 49}) {
    auto v = values_of<float>(x.v), f = values_of<float>(x.f), i = values_of<float>(x.i);
    for (int64_t d = 0; d < 24; ++d) v[static_cast<size_t>(t * 24 + d)] = changed_to;
    f[static_cast<size_t>(t)] = -3, i[static_cast<size_t>(t)] = 9;
    MlstmInputs changed = x;
    changed.v = device_tensor(x.v.shape(), v);
    changed.f = device_tensor(x.f.shape(), f);
    changed.i = device_tensor(x.i.shape(), i);
    const auto after = values_of<float>(mlstm_chunkwise_fw(changed, {}, {.chunk_size = 16}, false, false).h);
    expect_same_bits(std::span(after).first(static_cast<size_t>(t * 24)),
                     std::span(before).first(static_cast<size_t>(t * 24)), concat("token ", t));
    EXPECT_NE(after[static_cast<size_t>(t * 24)], before[static_cast<size_t>(t * 24)]);
  }
}

TEST(MlstmForward, HeadsDoNotDependOnEachOther) {
  const MlstmInputs x = mlstm_inputs(3, 2, 40, 16, 24, 13);
  const auto all = values_of<float>(mlstm_chunkwise_fw(x, {}, {.chunk_size = 16}, false, false).h);
  const auto alone = [](const Tensor& t) { return t.to(Device{}).slice(1, 2).to(test_device()); };
  const MlstmInputs one{alone(x.q), alone(x.k), alone(x.v), alone(x.i), alone(x.f)};
  const auto single = values_of<float>(mlstm_chunkwise_fw(one, {}, {.chunk_size = 16}, false, false).h);
  expect_same_bits(single, std::span(all).subspan(single.size(), single.size()), "sequence 1 of 3");
}

TEST(MlstmForward, ThreadsDoNotChangeTheBits) {
  if (is_gpu(test_device().kind)) GTEST_SKIP() << "threads are the CPU's";
  const MlstmInputs x = mlstm_inputs(1, 1, 90, 24, 200, 15);
  std::vector<float> first;
  for (const int threads : {1, 2, 3, 8}) {
    const Threads scope(threads);
    const auto out = mlstm_chunkwise_fw(x, {}, {}, true, false);
    auto values = values_of<float>(out.h);
    const auto c = values_of<float>(out.last.c);
    values.insert(values.end(), c.begin(), c.end());
    if (first.empty()) first = values;
    expect_same_bits(values, first, concat(threads, " threads"));
  }
}

TEST(MlstmForward, StridedInputsGiveTheSameBits) {
  const int64_t b = 2, h = 2, s = 30, dqk = 16, dv = 24;
  const MlstmInputs x = mlstm_inputs(b, h, s, dqk, dv, 17);
  // [B, S, NH, D] memory seen as [B, NH, S, D]
  const auto permuted = [&](const Tensor& t) {
    const int64_t d = t.dim(3);
    const auto from = values_of<float>(t);
    std::vector<float> to(from.size());
    for (int64_t i = 0; i < b * h * s * d; ++i) {
      const int64_t e = i % d, tok = i / d % s, head = i / d / s % h, batch = i / d / s / h;
      to[static_cast<size_t>(((batch * s + tok) * h + head) * d + e)] = from[static_cast<size_t>(i)];
    }
    const Tensor base = device_tensor(Shape{b, s, h, d}, to);
    const int64_t strides[] = {s * h * d, d, h * d, 1};
    return Tensor::wrap(base.data(), t.shape(), Dtype::f32, base.device(), base.owner(), strides);
  };
  const MlstmInputs y{permuted(x.q), permuted(x.k), permuted(x.v), x.i, x.f};
  expect_same_bits(mlstm_chunkwise_fw(y, {}, {.chunk_size = 16}, false, false).h,
                   mlstm_chunkwise_fw(x, {}, {.chunk_size = 16}, false, false).h, "h");
}

TEST(MlstmForward, SigmoidInputGateMatchesTheOracle) {
  for (const bool normalize : {true, false}) {
    const std::string name = normalize ? "sigmoid" : "sigmoid_plain";
    const MlstmCase c = mlstm_case(name);
    const MlstmSettings settings{
        .eps = 0, .chunk_size = 16, .sigmoid_input_gate = true, .normalize = normalize};
    const auto out = mlstm_chunkwise_fw(c.x, c.initial, settings, true, false);
    expect_relative(out.h, mlstm_expected(name, "h"), 2e-6, name + " h");
    expect_relative(out.last.c, mlstm_expected(name, "C"), 2e-6, name + " C");
    expect_relative(out.last.n, mlstm_expected(name, "n"), 2e-6, name + " n");
    for (const float m : values_of<float>(out.m_out)) EXPECT_EQ(m, 0);
    MlstmState state = copy_of({c.initial.c, c.initial.n});
    expect_relative(mlstm_recurrent(c.x, state, settings).h, mlstm_expected(name, "h"), 4e-6,
                    name + " recurrent");
  }
}

TEST(MlstmForward, SpecialInputsGiveTheirValues) {
  MlstmInputs x = mlstm_inputs(1, 1, 40, 16, 8, 19);
  const Tensor zero = Tensor::zeros(x.q.shape(), Dtype::f32, test_device());
  MlstmInputs no_query = x, no_key = x;
  no_query.q = zero, no_key.k = zero;
  for (const float h : values_of<float>(mlstm_chunkwise_fw(no_query, {}, {}, false, false).h))
    EXPECT_EQ(h, 0);
  const auto out = mlstm_chunkwise_fw(no_key, {}, {}, false, false);
  const auto nt = values_of<float>(out.nt), den = values_of<float>(out.n_out),
             m = values_of<float>(out.m_out);
  for (size_t t = 0; t < nt.size(); ++t) {
    EXPECT_EQ(nt[t], 0);
    EXPECT_NEAR(den[t], std::exp(-m[t]), 1e-6 * std::exp(-m[t]));
  }
  x.v = device_tensor(x.v.shape(), std::vector<float>(static_cast<size_t>(x.v.numel()), 3.0f));
  const auto constant = mlstm_chunkwise_fw(x, {}, {}, false, false);
  const auto h = values_of<float>(constant.h), n = values_of<float>(constant.nt),
             d = values_of<float>(constant.n_out);
  for (size_t t = 0; t < n.size(); ++t) EXPECT_NEAR(h[8 * t], 3 * n[t] / (d[t] + 1e-6), 1e-5);
}

TEST(MlstmForward, ExtremeGatesStayFinite) {
  const int64_t tokens = emulated() ? 40 : 300;
  const std::vector<float> values = {-1000, -100, -60, -50, 0, 50, 60, 100};
  for (const float i : values)
    for (const float f : values) {
      MlstmInputs x = mlstm_inputs(1, 1, tokens, 8, 8, 21);
      std::vector<float> gate_i(static_cast<size_t>(tokens), i), gate_f(static_cast<size_t>(tokens), f);
      for (size_t t = 0; t < gate_i.size(); t += 3) gate_i[t] = -i;
      x.i = device_tensor(x.i.shape(), gate_i);
      x.f = device_tensor(x.f.shape(), gate_f);
      const auto out = mlstm_chunkwise_fw(x, {}, {.chunk_size = 32}, true, false);
      for (const Tensor* t : {&out.h, &out.n_out, &out.m_out, &out.last.c})
        for (const float v : values_of<float>(*t)) ASSERT_TRUE(std::isfinite(v)) << "i " << i << ", f " << f;
      MlstmState state = zero_state(x);
      const auto want = doubles_of(mlstm_recurrent(x, state, {}).h);
      expect_relative(out.h, want, 1e-4, concat("i ", i, ", f ", f));
    }
}

TEST(MlstmForward, AnEmptyStateMayHaveMinusInfinity) {
  const MlstmInputs x = mlstm_inputs(1, 1, 20, 8, 8, 23);
  MlstmState empty = zero_state(x);
  empty.m = device_tensor<float>({1, 1}, {-INFINITY});
  const auto out = mlstm_chunkwise_fw(x, empty, {.eps = 0, .chunk_size = 16}, true, false);
  const auto want = mlstm_chunkwise_fw(x, {}, {.eps = 0, .chunk_size = 16}, true, false);
  expect_relative(out.h, doubles_of(want.h), 4e-6, "h");
  MlstmInputs silent = x;
  silent.i = device_tensor(x.i.shape(), std::vector<float>(20, -INFINITY));
  for (const float h : values_of<float>(mlstm_chunkwise_fw(silent, empty, {.chunk_size = 16}, true, false).h))
    EXPECT_EQ(h, 0);
}

TEST(MlstmForward, ShiftedStateIsTheSameState) {
  const MlstmCase c = mlstm_case("plain");
  const auto want =
      doubles_of(mlstm_chunkwise_fw(c.x, c.initial, {.eps = 0, .chunk_size = 16}, false, false).h);
  for (const float shift : {-5.0f, 5.0f}) {
    auto cs = values_of<float>(c.initial.c), ns = values_of<float>(c.initial.n),
         ms = values_of<float>(c.initial.m);
    for (float& v : cs) v *= std::exp(shift);
    for (float& v : ns) v *= std::exp(shift);
    for (float& v : ms) v -= shift;
    const MlstmState moved{device_tensor(c.initial.c.shape(), cs), device_tensor(c.initial.n.shape(), ns),
                           device_tensor(c.initial.m.shape(), ms)};
    expect_relative(mlstm_chunkwise_fw(c.x, moved, {.eps = 0, .chunk_size = 16}, false, false).h, want, 1e-5,
                    "shifted");
  }
}

TEST(MlstmForward, StepKeepsABfloat16State) {
  const MlstmInputs x = mlstm_inputs(2, 2, 20, 16, 24, 25);
  MlstmState wide = zero_state(x), narrow = zero_state(x);
  narrow.c = as_type(narrow.c, Dtype::bf16);
  const auto want = mlstm_recurrent(x, wide, {});
  expect_relative(mlstm_recurrent(x, narrow, {}).h, doubles_of(want.h), 3e-2, "h");
  expect_relative(narrow.n, doubles_of(wide.n), 0, "n");
}

TEST(MlstmForward, LongSequencesStayAccurate) {
  const int64_t tokens = emulated() ? 300 : 65536;
  const MlstmInputs x = mlstm_inputs(1, 1, tokens, 16, 16, 27);
  MlstmState state = zero_state(x);
  const auto want = mlstm_recurrent(x, state, {});
  const auto out = mlstm_chunkwise_fw(x, {}, {}, true, false);
  expect_relative(out.h, doubles_of(want.h), 1e-5, "h");
  MlstmInputs kept = x;  // nothing is forgotten: lf is about -2e-22
  kept.f = device_tensor(x.f.shape(), std::vector<float>(static_cast<size_t>(tokens), 50.0f));
  for (const float v : values_of<float>(mlstm_chunkwise_fw(kept, {}, {}, false, false).h))
    ASSERT_TRUE(std::isfinite(v));
}

TEST(MlstmForward, EmptyBatchesGiveEmptyOutputs) {
  const auto empty = [](const Shape& s) { return Tensor::empty(s, Dtype::f32, test_device()); };
  const MlstmInputs x{empty({0, 2, 5, 4}), empty({0, 2, 5, 4}), empty({0, 2, 5, 6}), empty({0, 2, 5}),
                      empty({0, 2, 5})};
  const auto out = mlstm_chunkwise_fw(x, {}, {}, true, true);
  EXPECT_EQ(out.h.shape(), (Shape{0, 2, 5, 6}));
  EXPECT_EQ(out.last.c.shape(), (Shape{0, 2, 4, 6}));
}

}  // namespace
}  // namespace trivium::testing
