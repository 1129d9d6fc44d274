// mLSTM: strides, scales, chunk sizes that change between the passes, stabilisers of the initial state,
// floors.
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

using ops::mlstm_chunkwise_bw;
using ops::mlstm_chunkwise_fw;
using ops::mlstm_recurrent;
using ops::MlstmGradients;
using ops::MlstmGradMode;
using ops::MlstmInputs;
using ops::MlstmSettings;
using ops::MlstmState;

MlstmGradients gradients(const MlstmCase& c, const MlstmSettings& forward, const MlstmSettings& backward) {
  const auto out = mlstm_chunkwise_fw(c.x, c.initial, forward, false, false);
  return mlstm_chunkwise_bw(
      c.x, c.initial,
      {.n_out = out.n_out, .m_out = out.m_out, .nt = out.nt, .dh = c.dh, .dc_last = c.dc, .dn_last = c.dn},
      backward, MlstmGradMode::exact);
}

// [B, S, NH, D] memory seen as [B, NH, S, D].
Tensor strided(const Tensor& t) {
  const int64_t b = t.dim(0), h = t.dim(1), s = t.dim(2), d = t.dim(3);
  const auto from = values_of<float>(t);
  std::vector<float> to(from.size());
  for (int64_t i = 0; i < t.numel(); ++i) {
    const int64_t e = i % d, token = i / d % s, head = i / d / s % h, batch = i / d / s / h;
    to[static_cast<size_t>(((batch * s + token) * h + head) * d + e)] = from[static_cast<size_t>(i)];
  }
  const Tensor base = device_tensor(Shape{b, s, h, d}, to);
  const int64_t strides[] = {s * h * d, d, h * d, 1};
  return Tensor::wrap(base.data(), t.shape(), Dtype::f32, base.device(), base.owner(), strides);
}

void expect_same_gradients(const MlstmGradients& got, const MlstmGradients& want) {
  expect_same_bits(got.dq, want.dq, "dq");
  expect_same_bits(got.dk, want.dk, "dk");
  expect_same_bits(got.dv, want.dv, "dv");
  expect_same_bits(got.di, want.di, "di");
  expect_same_bits(got.df, want.df, "df");
  expect_same_bits(got.initial.c, want.initial.c, "dC0");
}

TEST(MlstmSettings, StridedInputsGiveTheSameGradients) {
  const MlstmCase c = mlstm_case("plain");
  MlstmCase s = c;
  s.x.q = strided(c.x.q), s.x.k = strided(c.x.k), s.x.v = strided(c.x.v), s.dh = strided(c.dh);
  expect_same_gradients(gradients(s, {.chunk_size = 16}, {.chunk_size = 16}),
                        gradients(c, {.chunk_size = 16}, {.chunk_size = 16}));
}

TEST(MlstmSettings, TheScaleIsThatOfTheQueriesInBothPasses) {
  // Powers of two: a query of twice the size with half the scale gives the same bits.
  const MlstmCase c = mlstm_case("plain");
  MlstmCase twice = c;
  auto q = values_of<float>(c.x.q);
  for (float& v : q) v *= 2;
  twice.x.q = device_tensor(c.x.q.shape(), q);
  const MlstmSettings one{.qk_scale = 0.5, .chunk_size = 16}, half{.qk_scale = 0.25, .chunk_size = 16};
  const auto want = gradients(c, one, one);
  auto got = gradients(twice, half, half);
  auto dq = values_of<float>(got.dq);
  for (float& v : dq) v *= 2;
  got.dq = device_tensor(got.dq.shape(), dq);
  expect_same_gradients(got, want);
  EXPECT_GT(relative_l2(gradients(c, one, half).dq, doubles_of(want.dq)), 0.1) << "the scale is not used";
}

TEST(MlstmSettings, TheChunkSizeMayChangeBetweenThePasses) {
  const MlstmCase c = mlstm_case("odd");  // 130 tokens
  for (const auto& [forward, backward] : {std::pair{16, 64}, {128, 16}, {64, 256}}) {
    const auto got = gradients(c, {.chunk_size = forward}, {.chunk_size = backward});
    const std::string what = concat("chunks of ", forward, " and ", backward);
    expect_relative(got.dq, mlstm_expected("odd", "exact_last.q"), 1e-5, what + ", dq");
    expect_relative(got.dk, mlstm_expected("odd", "exact_last.k"), 1e-5, what + ", dk");
    expect_relative(got.df, mlstm_expected("odd", "exact_last.f"), 1e-4, what + ", df");
    expect_relative(got.initial.c, mlstm_expected("odd", "exact_last.C0"), 1e-5, what + ", dC0");
  }
}

TEST(MlstmSettings, TheInitialStabiliserMayBeAnything) {
  const MlstmCase c = mlstm_case("plain");
  for (const float m0 : {-80.0f, -10.0f, 0.0f, 10.0f, 80.0f}) {
    MlstmState initial = c.initial;
    initial.m = device_tensor(c.initial.m.shape(), std::vector<float>(4, m0));
    MlstmState state = copy_of(initial);
    const auto want = mlstm_recurrent(c.x, state, {});
    const auto out = mlstm_chunkwise_fw(c.x, initial, {.chunk_size = 16, .m_floor = -INFINITY}, true, false);
    expect_relative(out.h, doubles_of(want.h), 1e-5, concat("h, m ", m0));
    expect_relative(out.m_out, doubles_of(want.m_out), 1e-6, concat("m, m ", m0));
    // As C exp(m): the float32 m of 80 is rounded by 4e-6, and C with it.
    const auto m = doubles_of(out.last.m), want_m = doubles_of(state.m);
    auto c_want = doubles_of(state.c), n_want = doubles_of(state.n);
    for (size_t i = 0; i < c_want.size(); ++i) c_want[i] *= std::exp(want_m[i / 256] - m[i / 256]);
    for (size_t i = 0; i < n_want.size(); ++i) n_want[i] *= std::exp(want_m[i / 16] - m[i / 16]);
    expect_relative(out.last.c, c_want, 1e-5, concat("C, m ", m0));
    expect_relative(out.last.n, n_want, 1e-5, concat("n, m ", m0));
  }
}

TEST(MlstmSettings, AnInfiniteDenominatorPassesNoGradient) {
  // Without the floor exp(-m) overflows for i = -200: h is 0, and so is what depends on it.
  MlstmCase c;
  c.x = mlstm_inputs(1, 1, 40, 8, 8, 71);
  c.x.i = device_tensor(c.x.i.shape(), std::vector<float>(40, -200.0f));
  c.x.f = device_tensor(c.x.f.shape(), std::vector<float>(40, -100.0f));
  c.dh = random_normal({1, 1, 40, 8}, 72).to(test_device());
  const MlstmSettings settings{.chunk_size = 16, .m_floor = -INFINITY};
  const auto out = mlstm_chunkwise_fw(c.x, {}, settings, false, false);
  const auto got = gradients(c, settings, settings);
  const auto den = values_of<float>(out.n_out), h = values_of<float>(out.h), dq = values_of<float>(got.dq);
  EXPECT_TRUE(std::isinf(den.back()));
  for (size_t t = 0; t < 40; ++t)
    for (size_t d = 0; std::isinf(den[t]) && d < 8; ++d)
      EXPECT_EQ(std::abs(h[t * 8 + d]) + std::abs(dq[t * 8 + d]), 0);
  for (const Tensor* t : {&got.dq, &got.dk, &got.dv, &got.di, &got.df})
    for (const float v : values_of<float>(*t)) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace trivium::testing
