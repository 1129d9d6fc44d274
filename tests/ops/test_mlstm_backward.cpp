// mLSTM gradients: float64 results of tests/oracles/mlstm_oracle.py, the parts, and refused arguments.
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

using ops::mlstm_chunkwise_bw;
using ops::mlstm_chunkwise_fw;
using ops::MlstmGradients;
using ops::MlstmGradMode;
using ops::MlstmInputs;
using ops::MlstmSettings;
using ops::MlstmState;

struct Limits {
  Dtype dtype;
  double qkv, gates;
};
constexpr Limits kLimits[] = {
    {Dtype::f32, 1e-5, 1e-4}, {Dtype::bf16, 1.5e-2, 2e-2}, {Dtype::f16, 4e-3, 8e-3}};

MlstmGradients gradients(const MlstmCase& c, MlstmGradMode mode, bool last, MlstmSettings settings,
                         bool give_nt = true, bool give_states = false) {
  const auto out = mlstm_chunkwise_fw(c.x, c.initial, settings, false, give_states);
  return mlstm_chunkwise_bw(c.x, c.initial,
                            {.n_out = out.n_out,
                             .m_out = out.m_out,
                             .nt = give_nt ? out.nt : Tensor(),
                             .dh = c.dh,
                             .dc_last = last ? c.dc : Tensor(),
                             .dn_last = last ? c.dn : Tensor(),
                             .states = out.states},
                            settings, mode);
}

void expect_gradients(const MlstmGradients& got, const std::string& name, const std::string& key,
                      Limits limits, bool has_state, bool exact) {
  const std::string what = concat(name, " ", key, " ", limits.dtype, " ");
  const auto want = [&](const char* tensor) {
    auto values = mlstm_expected(name, key + "." + tensor);
    // What float16 cannot hold at all must come out as zero.
    if (limits.dtype == Dtype::f16 &&
        std::all_of(values.begin(), values.end(), [](double v) { return std::abs(v) < 0x1p-26; }))
      std::fill(values.begin(), values.end(), 0.0);
    return values;
  };
  expect_relative(got.dq, want("q"), limits.qkv, what + "dq");
  expect_relative(got.dk, want("k"), limits.qkv, what + "dk");
  expect_relative(got.dv, want("v"), limits.qkv, what + "dv");
  expect_relative(got.di, want("i"), limits.gates, what + "di");
  expect_relative(got.df, want("f"), limits.gates, what + "df");
  if (!has_state) return;
  expect_relative(got.initial.c, want("C0"), limits.qkv, what + "dC0");
  if (exact) {
    expect_relative(got.initial.n, want("n0"), limits.qkv, what + "dn0");
    expect_relative(got.initial.m, want("m0"), limits.gates, what + "dm0");
  } else {
    for (const Tensor* zero : {&got.initial.n, &got.initial.m})
      for (const float v : values_of<float>(*zero)) EXPECT_EQ(v, 0) << what;
  }
}

TEST(MlstmBackward, MatchesTheOracle) {
  for (const char* name : kMlstmCases)
    for (const Limits& limits : kLimits) {
      // Gradients grow with the inverse square of a denominator that cancels here: products of 16-bit values,
      // which the CPU does not form, lose it for any implementation. float32 covers the case.
      if (std::string(name) == "extreme" && is_gpu(test_device().kind) && limits.dtype != Dtype::f32)
        continue;
      for (const bool exact : {true, false})
        for (const bool last : {true, false}) {
          const MlstmCase c = mlstm_case(name, limits.dtype);
          const auto got = gradients(c, exact ? MlstmGradMode::exact : MlstmGradMode::approx, last,
                                     {.chunk_size = c.chunk});
          const std::string key = std::string(exact ? "exact" : "approx") + (last ? "_last" : "");
          expect_gradients(got, name, key, limits, c.initial.c.rank() > 0, exact);
        }
    }
}

TEST(MlstmBackward, GivenStatesAndAbsentNtChangeNothing) {
  for (const char* name : {"plain", "odd"})
    for (const bool give_nt : {true, false})
      for (const bool give_states : {true, false}) {
        const MlstmCase c = mlstm_case(name);
        const auto got =
            gradients(c, MlstmGradMode::exact, true, {.chunk_size = c.chunk}, give_nt, give_states);
        expect_gradients(got, name, "exact_last", kLimits[0], true, true);
      }
}

TEST(MlstmBackward, ChunkSizeDoesNotMatter) {
  const MlstmCase c = mlstm_case("odd");
  for (const int64_t chunk : {16, 32, 128, 256}) {
    expect_gradients(gradients(c, MlstmGradMode::exact, true, {.chunk_size = chunk}), "odd", "exact_last",
                     kLimits[0], true, true);
    expect_gradients(gradients(c, MlstmGradMode::exact, true, {.chunk_size = chunk}, false, true), "odd",
                     "exact_last", kLimits[0], true, true);
  }
}

TEST(MlstmBackward, LongSequencesAreRecomputedInSegments) {
  if (emulated()) GTEST_SKIP() << "too long for the emulator";
  const int64_t tokens = 5000;  // three segments on the CPU
  MlstmCase c;
  c.x = mlstm_inputs(1, 2, tokens, 8, 24, 31);
  c.initial = {random_normal({1, 2, 8, 24}, 1).to(test_device()),
               random_normal({1, 2, 8}, 2).to(test_device()), random_normal({1, 2}, 3).to(test_device())};
  c.dh = random_normal({1, 2, tokens, 24}, 4).to(test_device());
  c.dc = random_normal({1, 2, 8, 24}, 5).to(test_device());
  c.dn = random_normal({1, 2, 8}, 6).to(test_device());
  const auto whole = gradients(c, MlstmGradMode::exact, true, {});
  const auto with_states = gradients(c, MlstmGradMode::exact, true, {}, true, true);
  for (const auto& [got, want] : {std::pair{&whole.dq, &with_states.dq},
                                  {&whole.dk, &with_states.dk},
                                  {&whole.dv, &with_states.dv},
                                  {&whole.di, &with_states.di},
                                  {&whole.df, &with_states.df},
                                  {&whole.initial.c, &with_states.initial.c}})
    expect_relative(*got, doubles_of(*want), 1e-5, "segments");
}

TEST(MlstmBackward, GradientsPassThroughTheState) {
  // A loss over two calls with the state's gradient passed back equals one call.
  const MlstmCase c = mlstm_case("plain");
  const MlstmSettings settings{.chunk_size = 16};
  const int64_t tokens = c.x.q.dim(2), cut = 10;
  MlstmCase first = c, second = c;
  first.x = tokens_of(c.x, 0, cut), second.x = tokens_of(c.x, cut, tokens);
  first.dh = tokens_of(c.dh, 0, cut), second.dh = tokens_of(c.dh, cut, tokens);
  second.initial = mlstm_chunkwise_fw(first.x, first.initial, settings, true, false).last;
  const auto later = gradients(second, MlstmGradMode::exact, true, settings);
  first.dc = later.initial.c, first.dn = later.initial.n;
  const auto earlier = gradients(first, MlstmGradMode::exact, true, settings);
  const auto whole = gradients(c, MlstmGradMode::exact, true, settings);
  expect_relative(earlier.dk, doubles_of(tokens_of(whole.dk, 0, cut)), 2e-5, "dk");
  expect_relative(earlier.df, doubles_of(tokens_of(whole.df, 0, cut)), 1e-4, "df");
  expect_relative(later.dq, doubles_of(tokens_of(whole.dq, cut, tokens)), 2e-5, "dq");
  expect_relative(earlier.initial.c, doubles_of(whole.initial.c), 2e-5, "dC0");
}

TEST(MlstmBackward, ModesAgreeOnlyForOrthogonalGradients) {
  MlstmCase c = mlstm_case("plain");
  const MlstmSettings settings{.chunk_size = 16};
  const auto h = doubles_of(mlstm_chunkwise_fw(c.x, c.initial, settings, false, false).h);
  auto dh = values_of<float>(c.dh);
  const auto width = static_cast<size_t>(c.x.v.dim(3));
  for (size_t row = 0; row < h.size() / width; ++row) {
    double dot = 0, norm = 0;
    for (size_t d = row * width; d < (row + 1) * width; ++d) dot += dh[d] * h[d], norm += h[d] * h[d];
    for (size_t d = row * width; d < (row + 1) * width; ++d) dh[d] -= static_cast<float>(h[d] * dot / norm);
  }
  MlstmCase orthogonal = c;
  orthogonal.dh = device_tensor(c.dh.shape(), dh);
  const auto exact = gradients(orthogonal, MlstmGradMode::exact, false, settings);
  const auto approx = gradients(orthogonal, MlstmGradMode::approx, false, settings);
  expect_relative(approx.dq, doubles_of(exact.dq), 1e-4, "dq");
  expect_relative(approx.df, doubles_of(exact.df), 1e-4, "df");
  const auto other = gradients(c, MlstmGradMode::approx, false, settings);
  EXPECT_GT(relative_l2(other.dq, doubles_of(gradients(c, MlstmGradMode::exact, false, settings).dq)), 0.01);
}

TEST(MlstmBackward, SigmoidInputGateMatchesTheOracle) {
  const MlstmCase c = mlstm_case("sigmoid");
  const auto got =
      gradients(c, MlstmGradMode::exact, false, {.eps = 0, .chunk_size = 16, .sigmoid_input_gate = true});
  expect_gradients(got, "sigmoid", "exact", {Dtype::f32, 2e-5, 1e-4}, false, true);
}

TEST(MlstmBackward, PartsMakeTheWhole) {
  const MlstmCase c = mlstm_case("plain");  // 24 tokens
  const MlstmSettings settings{.chunk_size = 16};
  MlstmCase cut = c;
  cut.x = tokens_of(c.x, 0, 16), cut.dh = tokens_of(c.dh, 0, 16);
  MlstmCase two = c;  // 32 tokens: two chunks
  two.x = mlstm_inputs(2, 2, 32, 16, 16, 41);
  two.dh = random_normal({2, 2, 32, 16}, 42).to(test_device());
  for (const MlstmCase& k : {cut, two}) {
    const int64_t tokens = k.x.q.dim(2), chunks = tokens / 16;
    const auto f = values_of<float>(k.x.f);
    std::vector<float> log_f(f.size()), sums(f.size());
    for (size_t i = 0; i < f.size(); ++i) {
      log_f[i] = std::min(f[i], 0.0f) - std::log1p(std::exp(-std::abs(f[i])));
      sums[i] = i % 16 == 0 ? log_f[i] : sums[i - 1] + log_f[i];
    }
    const Shape chunked{2, 2, chunks, 16};
    const Tensor vec_b = device_tensor(chunked, sums),
                 vec_i = k.x.i.to(Device{}).contiguous().reshape(chunked).to(test_device());
    const auto whole = mlstm_chunkwise_fw(k.x, k.initial, settings, false, true);
    const auto states = ops::mlstm_recurrent_fw_c(k.x.k, k.x.v, vec_b, vec_i, k.initial, {}, settings);
    expect_relative(states.c, doubles_of(whole.states.c), 4e-6, "C");
    expect_relative(states.n, doubles_of(whole.states.n), 4e-6, "n");
    const auto out = ops::mlstm_parallel_fw_h(k.x.q, k.x.k, k.x.v, states, vec_i, vec_b, settings);
    expect_relative(out.h, doubles_of(whole.h), 1e-5, "h");
    expect_relative(out.m_out, doubles_of(whole.m_out), 1e-6, "m");

    const Tensor lf = device_tensor(k.x.f.shape(), log_f);
    for (const MlstmGradMode mode : {MlstmGradMode::exact, MlstmGradMode::approx}) {
      const bool exact = mode == MlstmGradMode::exact;
      const auto want = gradients(k, mode, true, settings);
      ops::MlstmDenominatorPath path;
      if (exact) path = {out.h, out.nt, k.dn};
      auto after = ops::mlstm_recurrent_bw_dc(k.x.q, lf, whole.states.m, whole.m_out, k.dh, whole.n_out, k.dc,
                                              path, settings);
      EXPECT_EQ(after.dc.shape(), (Shape{2, 2, chunks * 16, 16}));
      expect_relative(after.initial.c, doubles_of(want.initial.c), 2e-5, "dC0");
      expect_relative(after.initial.n, doubles_of(want.initial.n), 2e-5, "dn0");
      if (!exact) after.dn = {};
      const auto got = ops::mlstm_parallel_bw_dqkv(k.x.q, k.x.k, k.x.v, lf, k.x.i, whole.states, k.dh,
                                                   whole.n_out, whole.m_out, after, settings);
      expect_relative(got.dq, doubles_of(want.dq), 2e-5, "dq");
      expect_relative(got.dk, doubles_of(want.dk), 2e-5, "dk");
      expect_relative(got.dv, doubles_of(want.dv), 2e-5, "dv");
      expect_relative(got.di, doubles_of(want.di), 1e-4, "di");
      auto df = values_of<float>(got.df);
      for (size_t i = 0; i < df.size(); ++i) df[i] *= -std::expm1(log_f[i]);
      expect_relative(device_tensor(got.df.shape(), df), doubles_of(want.df), 1e-4, "df");
    }
  }
}

TEST(MlstmBackward, ACallersStreamAndMemoryGiveTheSameBits) {
  const MlstmCase c = mlstm_case("plain");
  const MlstmSettings settings{.chunk_size = 16};
  const Device device = test_device();
  const auto like = [&](const Tensor& t) { return Tensor::empty(t.shape(), t.dtype(), device); };
  const auto state_like = [&](const MlstmState& s) { return MlstmState{like(s.c), like(s.n), like(s.m)}; };
  std::optional<Stream> stream;
  if (is_gpu(device.kind)) stream.emplace(device);
  std::vector<Tensor> memory;
  const ops::MlstmQueue queue{stream ? &*stream : nullptr, [&](int64_t bytes) {
                                memory.push_back(Tensor::empty({bytes}, Dtype::u8, device));
                                return memory.back().data();
                              }};
  const auto want = mlstm_chunkwise_fw(c.x, c.initial, settings, true, false);
  const ops::MlstmOutput out{like(want.h),     like(want.n_out),      like(want.nt),
                             like(want.m_out), state_like(want.last), {}};
  ops::mlstm_chunkwise_fw_into(c.x, c.initial, settings, out, queue);
  const auto want_gradients = gradients(c, MlstmGradMode::exact, true, settings);
  const MlstmGradients got{like(c.x.q), like(c.x.k), like(c.x.v),
                           like(c.x.i), like(c.x.f), state_like(want_gradients.initial)};
  ops::mlstm_chunkwise_bw_into(
      c.x, c.initial,
      {.n_out = out.n_out, .m_out = out.m_out, .nt = out.nt, .dh = c.dh, .dc_last = c.dc, .dn_last = c.dn},
      settings, MlstmGradMode::exact, got, queue);
  if (stream) stream->synchronize();
  EXPECT_GE(memory.size(), 4u);
  expect_same_bits(out.h, want.h, "h");
  expect_same_bits(out.last.c, want.last.c, "C");
  expect_same_bits(got.dq, want_gradients.dq, "dq");
  expect_same_bits(got.df, want_gradients.df, "df");
  expect_same_bits(got.initial.n, want_gradients.initial.n, "dn0");
  const auto refused = [&](const ops::MlstmOutput& wrong, const MlstmSettings& other) {
    return [&, wrong, other] { ops::mlstm_chunkwise_fw_into(c.x, c.initial, other, wrong, queue); };
  };
  expect_error(refused({out.h, out.n_out, out.nt, {}, {}, {}}, settings), {"vecM_out", "missing"});
  if (stream) expect_error(refused(out, {.check_finite = true}), {"check_finite", "stream"});
  if (device.kind != DeviceKind::cuda && device.kind != DeviceKind::hip)
    expect_error<NotImplemented>([&] { Stream(device, nullptr); },
                                 {"streams of other libraries on ", name_of(device.kind)});
}

TEST(MlstmBackward, IsRepeatable) {
  const MlstmCase c = mlstm_case("odd");
  const auto first = gradients(c, MlstmGradMode::exact, true, {}),
             second = gradients(c, MlstmGradMode::exact, true, {});
  expect_same_bits(first.dq, second.dq, "dq");
  expect_same_bits(first.df, second.df, "df");
  expect_same_bits(first.initial.c, second.initial.c, "dC0");
}

TEST(MlstmBackward, GateGradientsTakeTheGatesType) {
  MlstmCase c = mlstm_case("plain", Dtype::bf16);
  c.x.i = as_type(c.x.i, Dtype::bf16), c.x.f = as_type(c.x.f, Dtype::bf16);
  const auto got = gradients(c, MlstmGradMode::exact, false, {.chunk_size = 16});
  EXPECT_EQ(got.di.dtype(), Dtype::bf16);
  EXPECT_EQ(got.df.dtype(), Dtype::bf16);
  EXPECT_EQ(got.dq.dtype(), Dtype::bf16);
}

TEST(MlstmBackward, ExtremeGatesStayFinite) {
  for (const float i : {-100.0f, 0.0f, 60.0f})
    for (const float f : {-100.0f, 0.0f, 60.0f}) {
      MlstmCase c;
      c.x = mlstm_inputs(1, 1, 40, 8, 8, 51);
      c.x.i = device_tensor(c.x.i.shape(), std::vector<float>(40, i));
      c.x.f = device_tensor(c.x.f.shape(), std::vector<float>(40, f));
      c.dh = random_normal({1, 1, 40, 8}, 52).to(test_device());
      const auto got = gradients(c, MlstmGradMode::exact, false, {.chunk_size = 16});
      for (const Tensor* t : {&got.dq, &got.dk, &got.dv, &got.di, &got.df})
        for (const float v : values_of<float>(*t)) ASSERT_TRUE(std::isfinite(v)) << "i " << i << ", f " << f;
    }
}

TEST(MlstmArguments, WrongOnesAreNamed) {
  const MlstmInputs x = mlstm_inputs(1, 2, 20, 8, 12, 61);
  const auto zeros = [](const Shape& s, Dtype d = Dtype::f32) { return Tensor::zeros(s, d, test_device()); };
  const auto forward = [](const MlstmInputs& in, const MlstmState& s = {}, const MlstmSettings& o = {}) {
    return [=] { mlstm_chunkwise_fw(in, s, o, false, false); };
  };
  const auto with = [&](auto&& change) {
    MlstmInputs y = x;
    change(y);
    return y;
  };
  expect_error(forward(with([&](auto& y) {
                 y.q = zeros({2, 20, 8});
               })),
               {"matQ", "[2, 20, 8]", "[B, NH, S, DHQK]"});
  expect_error(forward(with([&](auto& y) {
                 y.k = zeros({1, 2, 20, 9});
               })),
               {"matK", "[1, 2, 20, 9]", "[1, 2, 20, 8]"});
  expect_error(forward(with([&](auto& y) { y.v = zeros({1, 2, 21, 12}); })), {"matV", "[1, 2, 21, 12]"});
  expect_error(forward(with([&](auto& y) {
                 y.i = zeros({1, 2, 19});
               })),
               {"vecI", "[1, 2, 19]", "[1, 2, 20]"});
  expect_error(forward(with([&](auto& y) { y.f = zeros({1, 20}); })), {"vecF", "[1, 20]"});
  expect_error(forward(with([&](auto& y) {
                 y.f = zeros({1, 2, 20}, Dtype::bf16);
               })),
               {"vecF", "bfloat16", "float32"});
  expect_error(forward(with([&](auto& y) { y.v = zeros({1, 2, 20, 0}); })), {"matV", "head dimension is 0"});
  expect_error(forward(with([&](auto& y) {
                 y.q = y.k = zeros({1, 2, 20, 0});
               })),
               {"matQ", "head dimension is 0"});
  expect_error(forward(with([&](auto& y) { y.q = y.k = zeros({1, 2, 0, 8}); })), {"empty", "[1, 2, 0, 8]"});
  expect_error(forward(with([&](auto& y) {
                 y.k = zeros({1, 2, 20, 8}, Dtype::bf16);
               })),
               {"matK", "bfloat16", "float32"});
  expect_error(forward(with([&](auto& y) { y.q = zeros({1, 2, 20, 8}, Dtype::i32); })), {"matQ", "int32"});
  expect_error(forward(with([&](auto& y) { y.v = {}; })), {"matV", "missing"});
  expect_error(forward(x, {}, {.chunk_size = 0}), {"CHUNK_SIZE", "0"});
  if (is_gpu(test_device().kind))
    expect_error(forward(x, {}, {.chunk_size = 24}), {"CHUNK_SIZE", "24", "16, 32"});
  expect_error(forward(x, {}, {.chunk_size = 16, .strict_chunks = true}),
               {"20 tokens", "16", "strict_chunks"});
  expect_error(forward(x, {}, {.eps = -1e-6}), {"EPS"});
  expect_error(forward(x, {}, {.qk_scale = NAN}), {"qk_scale"});
  expect_error(forward(x, {}, {.normalize = false}), {"normalize", "sigmoid"});
  const MlstmState s = zero_state(x);
  expect_error(forward(x, {s.c, s.n, {}}), {"scaM_initial", "missing"});
  expect_error(forward(x, {s.c, {}, s.m}), {"vecN_initial", "missing"});
  expect_error(forward(x, {zeros({1, 2, 8, 13}), s.n, s.m}),
               {"matC_initial", "[1, 2, 8, 13]", "[1, 2, 8, 12]"});
  expect_error(forward(x, {s.c, zeros({1, 2, 8}, Dtype::bf16), s.m}), {"vecN_initial", "bfloat16"});
  expect_error(forward(x, s, {.sigmoid_input_gate = true}), {"scaM_initial", "sigmoid"});
  if (is_gpu(test_device().kind))
    expect_error(forward(x, {zero_state(x).c.to(Device{}), s.n, s.m}), {"matC_initial", "cpu"});
  expect_error<InvalidArgument>([] { ops::parse_mlstm_grad_mode("fast"); }, {"grad_mode", "fast", "exact"});
  std::vector<float> bad(static_cast<size_t>(x.k.numel()), 1.0f);
  bad[7] = NAN;
  expect_error(
      forward(with([&](auto& y) { y.k = device_tensor(x.k.shape(), bad); }), {}, {.check_finite = true}),
      {"matK", "element 7"});

  const auto out = mlstm_chunkwise_fw(x, {}, {}, false, false);
  const auto backward = [&](const ops::MlstmGradientInputs& g) {
    return [=] { mlstm_chunkwise_bw(x, {}, g, {}, MlstmGradMode::exact); };
  };
  expect_error(backward({.n_out = {}, .m_out = out.m_out, .dh = out.h}), {"vecN_out", "missing"});
  expect_error(backward({.n_out = out.n_out, .m_out = {}, .dh = out.h}), {"vecM_out", "missing"});
  expect_error(backward({.n_out = out.n_out, .m_out = out.m_out, .dh = x.q}), {"matDeltaH", "[1, 2, 20, 8]"});
  expect_error(backward({.n_out = out.n_out, .m_out = out.m_out, .dh = out.h, .dc_last = s.n}),
               {"matDeltaC_last", "[1, 2, 8]"});
}

}  // namespace
}  // namespace trivium::testing
