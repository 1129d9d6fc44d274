// The mLSTM's chunkwise passes over many chunks, and over wide ones: nothing may drift, and the chunk is not
// seen in the results.
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

using ops::mlstm_chunkwise_bw;
using ops::mlstm_chunkwise_fw;
using ops::MlstmGradMode;
using ops::MlstmInputs;
using ops::MlstmState;

constexpr double kLong = 8e-6;  // mlstm.md 11: four times 2e-6 beyond 16k tokens

double log_sigmoid(double f) { return std::min(f, 0.0) - std::log1p(std::exp(-std::abs(f))); }

Tensor filled(const Shape& shape, float value) {
  return device_tensor(shape, std::vector<float>(static_cast<size_t>(shape.numel()), value));
}

// Positive queries and keys, so that no denominator cancels; constant gates after the first token's.
MlstmInputs with_gates(int64_t tokens, int64_t dim, float first_i, float i, float f) {
  const auto positive = [&](uint64_t seed) {
    Tensor t = random_normal({1, 1, tokens, dim}, seed);
    for (int64_t at = 0; at < t.numel(); ++at) t.data_as<float>()[at] = std::abs(t.data_as<float>()[at]);
    return t.to(test_device());
  };
  std::vector<float> input(static_cast<size_t>(tokens), i);
  input[0] = first_i;
  return {positive(1), positive(2), random_normal({1, 1, tokens, dim}, 3).to(test_device()),
          device_tensor<float>({1, 1, tokens}, input), filled({1, 1, tokens}, f)};
}

// The largest relative error of values exp(m - want_m), which should all be 1.
double drift(const Tensor& values, double m, double want_m) {
  double worst = 0;
  for (const double v : doubles_of(values)) worst = std::max(worst, std::abs(v * std::exp(m - want_m) - 1));
  return worst;
}

TEST(MlstmLong, AStateThatOnlyDecaysDoesNotDriftAgainstItsStabiliser) {
  const int64_t tokens = emulated() ? 4096 : 16384;
  const MlstmInputs x = with_gates(tokens, 2, -5000, -5000, 6);
  const MlstmState one{filled({1, 1, 2, 2}, 1), filled({1, 1, 2}, 1), filled({1, 1}, 0)};
  const double decayed = static_cast<double>(tokens) * log_sigmoid(6);
  for (const int64_t chunk : {16, 64}) {
    const ops::MlstmSettings settings{.chunk_size = chunk, .m_floor = -INFINITY};
    // A float32 state is rounded once a chunk, here always the same way.
    const double limit = std::max(kLong, 0x1p-25 * static_cast<double>(tokens / chunk));
    const auto out = mlstm_chunkwise_fw(x, one, settings, true, false);
    const double m = doubles_of(out.last.m)[0];
    EXPECT_LE(drift(out.last.c, m, decayed), limit) << "C, chunks of " << chunk;
    EXPECT_LE(drift(out.last.n, m, decayed), limit) << "n, chunks of " << chunk;
    // Backwards dC decays by the same weight: dC0 = exp(F - m_S) dC.
    const auto back = mlstm_chunkwise_bw(x, one,
                                         {.n_out = out.n_out,
                                          .m_out = out.m_out,
                                          .nt = out.nt,
                                          .dh = filled({1, 1, tokens, 2}, 0),
                                          .dc_last = filled({1, 1, 2, 2}, 1),
                                          .dn_last = filled({1, 1, 2}, 1)},
                                         settings, MlstmGradMode::exact);
    EXPECT_LE(drift(back.initial.c, m, decayed), limit) << "dC, chunks of " << chunk;
    EXPECT_LE(drift(back.initial.n, m, decayed), limit) << "dn, chunks of " << chunk;
    // dlf_t = <C_last, dC> + n . dn for every t; df = dlf sigmoid(-f).
    const double closed = std::exp(log_sigmoid(-6));
    for (const double df : doubles_of(back.df))
      ASSERT_NEAR(df * std::exp(m - decayed), 6 * closed, 6 * closed * 2 * limit) << "chunks of " << chunk;
  }
}

// h of all tokens, in float64.
std::vector<double> recurrence(const MlstmInputs& x, double eps) {
  const auto q = doubles_of(x.q), k = doubles_of(x.k), v = doubles_of(x.v), i = doubles_of(x.i),
             f = doubles_of(x.f);
  const auto dim = static_cast<size_t>(x.q.dim(3));
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> h, c(dim * dim), n(dim);
  double m = 0;
  for (size_t t = 0; t < i.size(); ++t) {
    const double after = std::max(log_sigmoid(f[t]) + m, i[t]);
    const double keep = std::exp(log_sigmoid(f[t]) + m - after), take = std::exp(i[t] - after);
    m = after;
    double nt = 0;
    std::vector<double> num(dim);
    for (size_t d = 0; d < dim; ++d) {
      n[d] = keep * n[d] + take * k[t * dim + d];
      nt += scale * q[t * dim + d] * n[d];
      for (size_t e = 0; e < dim; ++e) {
        c[d * dim + e] = keep * c[d * dim + e] + take * k[t * dim + d] * v[t * dim + e];
        num[e] += scale * q[t * dim + d] * c[d * dim + e];
      }
    }
    for (const double value : num) h.push_back(value / (std::max(std::abs(nt), std::exp(-m)) + eps));
  }
  return h;
}

TEST(MlstmLong, OneOldTokenAndManyFaintOnesKeepTheirWeights) {
  const MlstmInputs x = with_gates(32768, 4, 15, -10, 8);
  const auto out = mlstm_chunkwise_fw(x, {}, {.eps = 0}, false, false);
  expect_relative(out.h, recurrence(x, 0), kLong, "h");
}

TEST(MlstmLong, WideChunksGiveTheSameGradients) {
  for (const auto& [chunk, tokens] : {std::pair<int64_t, int64_t>{256, 600}, {512, 700}, {1024, 1100}}) {
    const MlstmInputs x = mlstm_inputs(1, 1, tokens, 4, 4, 41);
    const auto on = [](const Tensor& t) { return t.to(Device{}); };
    const MlstmInputs host{on(x.q), on(x.k), on(x.v), on(x.i), on(x.f)};
    const Tensor dh = random_normal({1, 1, tokens, 4}, 42);
    const auto run = [&](const MlstmInputs& y, const Tensor& gradient, int64_t size) {
      const auto out = mlstm_chunkwise_fw(y, {}, {.chunk_size = size}, false, false);
      return mlstm_chunkwise_bw(y, {}, {.n_out = out.n_out, .m_out = out.m_out, .nt = out.nt, .dh = gradient},
                                {.chunk_size = size}, MlstmGradMode::exact);
    };
    const auto want = run(host, dh, 16), got = run(x, dh.to(test_device()), chunk);
    const std::string what = concat("chunks of ", chunk, " ");
    expect_relative(got.dq, doubles_of(want.dq), 1e-5, what + "dq");
    expect_relative(got.dk, doubles_of(want.dk), 1e-5, what + "dk");
    expect_relative(got.dv, doubles_of(want.dv), 1e-5, what + "dv");
    expect_relative(got.di, doubles_of(want.di), 1e-4, what + "di");
    expect_relative(got.df, doubles_of(want.df), 1e-4, what + "df");
  }
}

TEST(MlstmLong, EveryFormOfTheSigmoidGateHasTheCpusGradients) {
  // Against the CPU, whose own are compared with differences of the oracle in tests/python.
  const MlstmInputs x = mlstm_inputs(1, 2, 40, 8, 6, 51);
  const auto on = [](const Tensor& t) { return t.to(Device{}); };
  const MlstmInputs host{on(x.q), on(x.k), on(x.v), on(x.i), on(x.f)};
  const MlstmState state{random_normal({1, 2, 8, 6}, 52), random_normal({1, 2, 8}, 53)};
  const Tensor dh = random_normal({1, 2, 40, 6}, 54), dc = random_normal({1, 2, 8, 6}, 55),
               dn = random_normal({1, 2, 8}, 56);
  for (const bool normalize : {true, false})
    for (const MlstmGradMode mode : {MlstmGradMode::exact, MlstmGradMode::approx}) {
      const ops::MlstmSettings settings{.chunk_size = 16, .sigmoid_input_gate = true, .normalize = normalize};
      const auto run = [&](const MlstmInputs& y, Device device) {
        const MlstmState initial{state.c.to(device), state.n.to(device)};
        const auto out = mlstm_chunkwise_fw(y, initial, settings, true, false);
        EXPECT_FALSE(out.last.m.defined());
        return mlstm_chunkwise_bw(y, initial,
                                  {.n_out = out.n_out,
                                   .m_out = out.m_out,
                                   .nt = out.nt,
                                   .dh = dh.to(device),
                                   .dc_last = dc.to(device),
                                   .dn_last = dn.to(device)},
                                  settings, mode);
      };
      const auto want = run(host, {}), got = run(x, test_device());
      EXPECT_FALSE(got.initial.m.defined());
      const std::string what =
          concat(normalize ? "normalized " : "plain ", mode == MlstmGradMode::exact ? "exact " : "approx ");
      for (const auto& [name, a, b] : {std::tuple{"dq", &got.dq, &want.dq},
                                       {"dk", &got.dk, &want.dk},
                                       {"dv", &got.dv, &want.dv},
                                       {"di", &got.di, &want.di},
                                       {"df", &got.df, &want.df},
                                       {"dC0", &got.initial.c, &want.initial.c},
                                       {"dn0", &got.initial.n, &want.initial.n}})
        expect_relative(*a, doubles_of(*b), 1e-5, what + name);
    }
}

}  // namespace
}  // namespace trivium::testing
