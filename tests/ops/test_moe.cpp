// Expert choice, the permutation by expert, and the experts themselves.
#include <numeric>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::Experts;
using ops::Routing;
using ops::Weight;

TEST(MoeRoute, MatchesTheOracle) {
  const Golden golden("moe_route");
  for (int c = 0; golden.has(concat(c, ".logits")); ++c) {
    const auto name = [&](const char* key) { return concat(c, '.', key); };
    const Tensor experts = golden.host(name("experts"));
    const Routing r = ops::moe_route(golden.device(name("logits")), experts.dim(1));
    EXPECT_EQ(values_of<int32_t>(r.experts), values_of<int32_t>(experts)) << "case " << c;
    expect_close(r.weights, golden.doubles(name("weights")), kF32, name("weights"));
  }
}

TEST(MoeRoute, TiesTakeTheLowerIndex) {
  const Tensor logits =
      device_tensor<float>({3, 5}, {1, 1, 1, 1, 1, 0, 2, 1, 2, 2, -1, -0.0f, 0.0f, -1, 0.0f});
  const Routing r = ops::moe_route(logits, 3);
  EXPECT_EQ(values_of<int32_t>(r.experts), (std::vector<int32_t>{0, 1, 2, 1, 3, 4, 1, 2, 4}));
  for (const float w : values_of<float>(r.weights)) EXPECT_FLOAT_EQ(w, 1.0f / 3);
}

TEST(MoeRoute, HugeLogitsGiveFiniteWeightsThatSumToOne) {
  const auto w =
      values_of<float>(ops::moe_route(device_tensor<float>({1, 4}, {3e38f, -3e38f, 3e38f, 0}), 3).weights);
  EXPECT_EQ(w, (std::vector<float>{0.5f, 0.5f, 0}));
}

TEST(MoeRoute, NanReachesTheWeightsAndIndicesStayDistinct) {
  for (const int place : {0, 1, 3}) {
    std::vector<float> z{1, 5, 2, 4};
    z[static_cast<size_t>(place)] = NAN;
    const Routing r = ops::moe_route(device_tensor<float>({1, 4}, z), 2);
    expect_all_nan(values_of<float>(r.weights), concat("NaN at ", place));
    const auto experts = values_of<int32_t>(r.experts);
    EXPECT_NE(experts[0], experts[1]);
    for (const int32_t e : experts) EXPECT_TRUE(0 <= e && e < 4) << e;
  }
}

TEST(MoePermute, SortsChoicesByExpertAndKeepsTheirOrder) {
  const std::vector<int32_t> experts{2, 0, 0, 2, 4, 2};  // 3 tokens, 2 choices each; experts 1 and 3 idle
  Guarded offsets({6}, Dtype::i32), tokens({6}, Dtype::i32), rows({3, 2}, Dtype::i32);
  const Tensor chosen = device_tensor<int32_t>({3, 2}, experts);
  const MoePermuteArgs args{chosen.data_as<int32_t>(),
                            static_cast<int32_t*>(offsets.data()),
                            static_cast<int32_t*>(tokens.data()),
                            static_cast<int32_t*>(rows.data()),
                            3,
                            5,
                            2};
  call_kernel(test_device(), &Kernels::moe_permute, "moe_permute", nullptr, args);
  EXPECT_EQ(values_of<int32_t>(offsets.tensor()), (std::vector<int32_t>{0, 2, 2, 5, 5, 6}));
  EXPECT_EQ(values_of<int32_t>(tokens.tensor()), (std::vector<int32_t>{0, 1, 0, 1, 2, 2}));
  EXPECT_EQ(values_of<int32_t>(rows.tensor()), (std::vector<int32_t>{2, 0, 1, 3, 5, 4}));
  offsets.expect_intact("offsets"), tokens.expect_intact("tokens_of_row"),
      rows.expect_intact("row_of_choice");
}

struct GoldenExperts {
  Golden golden{"moe_experts"};
  Routing routing{golden.device("0.experts"), golden.device("0.weights")};
  Tensor dense(const char* part, Dtype dtype) const {
    return ops::mxfp4_decode(golden.device(concat("0.", part, "_blocks")),
                             golden.device(concat("0.", part, "_scales")))
        .to(dtype);
  }
  Experts experts(bool mxfp4, Dtype dtype) const {
    const auto weight = [&](const char* part) {
      return mxfp4 ? Weight::mxfp4(golden.device(concat("0.", part, "_blocks")),
                                   golden.device(concat("0.", part, "_scales")), part)
                   : Weight::dense(dense(part, dtype), part);
    };
    return {.gate_up = weight("gate_up"),
            .down = weight("down"),
            .gate_up_bias = golden.host("0.gate_up_bias").to(dtype).to(test_device()),
            .down_bias = golden.host("0.down_bias").to(dtype).to(test_device())};
  }
};

TEST(MoeExperts, MatchTheOracleInEveryFormat) {
  const GoldenExperts g;
  const auto want = g.golden.doubles("0.y");
  const Tensor x = g.golden.device("0.x");
  for (const bool mxfp4 : {true, false})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      const Experts e = g.experts(mxfp4, dtype);
      const std::string what = concat(mxfp4 ? "mxfp4, bias " : "dense ", dtype);
      expect_close(ops::moe_experts(x, g.routing, e), want, kF32, what);
      expect_close(ops::moe_experts(x.to(Dtype::bf16), g.routing, e), want, kBf16, what + ", x bfloat16");
    }
}

TEST(MoeExperts, AllFormatsOfEqualWeightsGiveEqualBits) {
  const GoldenExperts g;
  for (const Dtype activation : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = g.golden.device("0.x").to(activation);
    const Tensor want = ops::moe_experts(x, g.routing, g.experts(true, Dtype::bf16));
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
      expect_same_bits(ops::moe_experts(x, g.routing, g.experts(false, dtype)), want,
                       concat("dense ", dtype));
  }
}

// Sizes that are no multiple of a task or tile, and so many tokens that one expert gets every possible count.
struct Layer {
  int64_t hidden, inter, num_experts, top_k;
  Experts experts;
  Layer(int64_t h, int64_t i, int64_t e, int64_t k, bool mxfp4)
      : hidden(h), inter(i), num_experts(e), top_k(k) {
    const auto weight = [&](int64_t rows, int64_t cols, uint64_t seed) {
      if (!mxfp4)
        return Weight::dense(random_normal({e, rows, cols}, seed, .2).to(Dtype::bf16).to(test_device()), "w");
      return Weight::mxfp4(random_bytes({e, rows, cols / 32, 16}, seed).to(test_device()),
                           random_bytes({e, rows, cols / 32}, seed, 122, 125).to(test_device()), "w");
    };
    experts.gate_up = weight(2 * inter, hidden, 1);
    experts.down = weight(hidden, inter, 2);
    experts.gate_up_bias = random_normal({e, 2 * inter}, 3).to(test_device());
    experts.down_bias = random_normal({e, hidden}, 4).to(test_device());
  }
  Tensor run(const Tensor& x, const Tensor& logits) const {
    return ops::moe_experts(x.to(test_device()), ops::moe_route(logits.to(test_device()), top_k), experts);
  }
};

TEST(MoeExperts, ATokensBitsDoNotDependOnTheOthers) {
  for (const bool mxfp4 : {true, false})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Layer layer(mxfp4 ? 64 : 45, mxfp4 ? 96 : 37, 5, 2, mxfp4);
      const int64_t tokens = 41;
      const Tensor x = random_normal({tokens, layer.hidden}, 5).to(dtype),
                   logits = random_normal({tokens, 5}, 6);
      std::vector<float> single;
      for (int64_t t = 0; t < tokens; ++t) {
        const auto y = values_of<float>(layer.run(x.slice(t, t + 1), logits.slice(t, t + 1)));
        single.insert(single.end(), y.begin(), y.end());
      }
      for (const int64_t m : {2, 3, 7, 12, 13, 14, 15, 16, 17, 25, 40, 41})
        expect_same_bits(values_of<float>(layer.run(x.slice(0, m), logits.slice(0, m))),
                         std::span(single).first(static_cast<size_t>(m * layer.hidden)),
                         concat(m, " tokens, ", dtype, mxfp4 ? ", mxfp4" : ", dense"));
    }
}

TEST(MoeExperts, AnExpertWithMoreRowsThanAChunkKeepsTheBits) {
  const Layer layer(32, 32, 2, 1, true);
  const int64_t tokens = 530;
  const Tensor x = random_normal({tokens, 32}, 1);
  Tensor logits = Tensor::zeros({tokens, 2}, Dtype::f32);
  for (int64_t t = 0; t < tokens; ++t) logits.data_as<float>()[2 * t] = 1;
  const auto all = values_of<float>(layer.run(x, logits));
  for (const int64_t t : {0, 255, 256, 257, 511, 512, 529})
    expect_same_bits(values_of<float>(layer.run(x.slice(t, t + 1), logits.slice(t, t + 1))),
                     std::span(all).subspan(static_cast<size_t>(t * 32), 32), concat("token ", t));
}

TEST(MoeExperts, BitsDoNotDependOnTheNumberOfThreads) {
  const Layer layer(64, 96, 5, 3, true);
  const Tensor x = random_normal({11, 64}, 1), logits = random_normal({11, 5}, 2);
  Tensor want;
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    const Tensor y = layer.run(x, logits);
    if (threads == 1) want = y;
    expect_same_bits(y, want, concat(threads, " threads"));
  }
}

TEST(MoeExperts, NanFillsItsTokenAndNoOther) {
  const Layer layer(64, 96, 5, 2, true);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Tensor x = random_normal({3, 64}, 1);
    x.data_as<float>()[64 + 17] = NAN;
    const auto y = values_of<float>(layer.run(x.to(dtype), random_normal({3, 5}, 2)));
    expect_all_nan(std::span(y).subspan(64, 64), "token 1");
    for (size_t i = 0; i < 64; ++i) EXPECT_FALSE(std::isnan(y[i]) || std::isnan(y[128 + i]));
  }
}

TEST(MoeExperts, KernelsWriteTheirRowsOnly) {
  const Layer layer(33, 35, 3, 1, false);
  const int64_t rows = 5;
  const Tensor offsets = device_tensor<int32_t>({4}, {0, 2, 2, 5}),
               tokens = device_tensor<int32_t>({5}, {4, 1, 0, 2, 3});
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = random_normal({rows, 33}, 1).to(dtype).to(test_device());
    Guarded act({rows, 35}, dtype), y({rows, 33}, Dtype::f32);
    const auto bias = [](const Tensor& t) { return VectorView{t.data(), t.dtype()}; };
    const MoeGateUpArgs up{x.data(),
                           layer.experts.gate_up.view(),
                           bias(layer.experts.gate_up_bias),
                           offsets.data_as<int32_t>(),
                           tokens.data_as<int32_t>(),
                           act.data(),
                           rows,
                           3,
                           33,
                           35,
                           1.702f,
                           7.0f,
                           dtype};
    call_kernel(test_device(), &Kernels::moe_gate_up, "moe_gate_up", nullptr, up);
    act.expect_intact("moe_gate_up");
    const MoeDownArgs down{act.data(),
                           layer.experts.down.view(),
                           bias(layer.experts.down_bias),
                           offsets.data_as<int32_t>(),
                           static_cast<float*>(y.data()),
                           rows,
                           3,
                           33,
                           35,
                           dtype};
    call_kernel(test_device(), &Kernels::moe_down, "moe_down", nullptr, down);
    y.expect_intact("moe_down");
    for (const float value : values_of<float>(y.tensor()))
      EXPECT_GT(std::abs(value), 1e-12f) << "not written";
  }
}

TEST(MoeExperts, NoTokensGiveAnEmptyResult) {
  const Layer layer(32, 32, 2, 1, true);
  EXPECT_EQ(layer.run(Tensor::empty({0, 32}, Dtype::f32), Tensor::empty({0, 2}, Dtype::f32)).shape(),
            (Shape{0, 32}));
}

}  // namespace
}  // namespace trivium::testing
