// Rotary embedding with YaRN scaling.
#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::RopeFrequencies;
using ops::RopeScaling;

constexpr RopeScaling kGptOss{.theta = 150000, .factor = 32, .attention_factor = {}};

TEST(RopeFrequencies, AgreeWithTheCheckValuesOfTheReleasedModels) {
  const RopeFrequencies f = ops::rope_frequencies(64, kGptOss);
  const std::pair<size_t, double> checks[] = {{0, 1},
                                              {8, 0.0508132748},
                                              {9, 0.0317056962},
                                              {12, 0.00679495949},
                                              {17, 1.29318701e-4},
                                              {18, 3.83088124e-5},
                                              {31, 3.02351143e-7}};
  for (const auto& [pair, value] : checks) EXPECT_NEAR(f.inv_freq[pair] / value, 1, 1e-8) << "pair " << pair;
  EXPECT_DOUBLE_EQ(f.concentration, 1.3465735902799727);
}

TEST(RopeFrequencies, UnscaledPairsStayAndSlowPairsAreDividedByTheFactor) {
  RopeScaling plain = kGptOss;
  plain.factor = 1;
  const RopeFrequencies scaled = ops::rope_frequencies(64, kGptOss), base = ops::rope_frequencies(64, plain);
  EXPECT_EQ(base.concentration, 1);
  for (size_t i = 0; i < 32; ++i) {
    if (i <= 8 || i >= 18) {
      EXPECT_DOUBLE_EQ(scaled.inv_freq[i], base.inv_freq[i] / (i <= 8 ? 1 : 32)) << i;
    }
    EXPECT_DOUBLE_EQ(base.inv_freq[i], std::pow(150000.0, -static_cast<double>(i) / 32)) << i;
  }
}

TEST(RopeFrequencies, TruncationWidensTheRampToWholePairs) {
  RopeScaling s = kGptOss;
  s.truncate = true;  // ramp from pair 8 to pair 18
  const RopeFrequencies f = ops::rope_frequencies(64, s);
  const double base9 = std::pow(150000.0, -9.0 / 32);
  EXPECT_DOUBLE_EQ(f.inv_freq[9], base9 * 0.9 + base9 / 32 * 0.1);
  s.attention_factor = 1.25;
  EXPECT_EQ(ops::rope_frequencies(64, s).concentration, 1.25);
}

TEST(Rope, MatchesTheOracleUpToTheLastPosition) {
  const Golden golden("rope");
  for (int c = 0; golden.has(concat(c, ".x")); ++c) {
    const auto name = [&](const char* key) { return concat(c, '.', key); };
    const Tensor x = golden.device(name("x"));
    RopeScaling scaling = kGptOss;
    scaling.factor = static_cast<double>(golden.number(name("factor")));
    const RopeFrequencies f = ops::rope_frequencies(x.dim(2), scaling);
    const auto want = golden.doubles(name("inv_freq"));
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT_DOUBLE_EQ(f.inv_freq[i], want[i]) << name("inv_freq ") << i;
    EXPECT_DOUBLE_EQ(f.concentration, golden.doubles(name("concentration"))[0]);
    expect_close(ops::rope(x, golden.device(name("positions")), f), golden.doubles(name("y")), kF32,
                 name("y"));
  }
}

TEST(Rope, PositionZeroOnlyScalesByTheConcentration) {
  const Tensor x = random_normal({1, 3, 8}, 1);
  RopeScaling plain = kGptOss;
  plain.factor = 1;
  const Tensor zero = device_tensor<int32_t>({1}, {0});
  expect_same_bits(ops::rope(x.to(test_device()), zero, ops::rope_frequencies(8, plain)), x, "plain");
}

TEST(Rope, RotatesInPlaceBetweenGuardsAndKeepsTheGapBetweenTokens) {
  const int64_t tokens = 3, heads = 2, dim = 6, stride = 20;
  const RopeFrequencies f = ops::rope_frequencies(dim, kGptOss);
  const Tensor positions = device_tensor<int32_t>({tokens}, {5, 0, 70000});
  const Tensor x = random_normal({tokens, heads, dim}, 2);
  const auto want = values_of<float>(ops::rope(x.to(test_device()), positions, f));
  const Tensor inv_freq = device_tensor<double>({3}, f.inv_freq);
  Guarded table({tokens, dim / 2, 2}, Dtype::f32), out({tokens, stride}, Dtype::f32);
  const RopeTableArgs table_args{positions.data_as<int32_t>(),
                                 inv_freq.data_as<double>(),
                                 static_cast<float*>(table.data()),
                                 tokens,
                                 dim / 2,
                                 f.concentration};
  call_kernel(test_device(), &Kernels::rope_table, "rope_table", nullptr, table_args);
  std::vector<float> strided(static_cast<size_t>(tokens * stride), 42);
  for (int64_t t = 0; t < tokens; ++t)
    std::copy_n(x.data_as<float>() + t * heads * dim, heads * dim, &strided[static_cast<size_t>(t * stride)]);
  const Tensor source = device_tensor<float>({tokens, stride}, strided);
  runtime(test_device()).copy(test_device().index, nullptr, out.data(), source.data(), source.nbytes());
  const RopeArgs args{
      static_cast<float*>(out.data()), static_cast<float*>(table.data()), tokens, heads, dim, stride};
  call_kernel(test_device(), &Kernels::rope, "rope", nullptr, args);
  table.expect_intact("rope_table"), out.expect_intact("rope");
  const auto got = values_of<float>(out.tensor());
  for (int64_t t = 0; t < tokens; ++t) {
    expect_same_bits(std::span(got).subspan(static_cast<size_t>(t * stride), heads * dim),
                     std::span(want).subspan(static_cast<size_t>(t * heads * dim), heads * dim),
                     concat("token ", t));
    for (int64_t i = heads * dim; i < stride; ++i) EXPECT_EQ(got[static_cast<size_t>(t * stride + i)], 42);
  }
}

// Two sequences write their rotated keys and their values into pages; every other byte of the pool stays.
TEST(RopeKv, WritesRotatedKeysAndPlainValuesToTheirPagesOnly) {
  const int64_t heads = 4, kv = 2, dim = 6, page_size = 4, pages = 5, tokens = 3;
  const std::vector<int32_t> table{3, 0, 1, 4}, slots{1, 0, 1}, positions{6, 0, 9};  // 9 wraps: 9 / 4 % 2 = 0
  const Tensor qkv = random_normal({tokens, heads + 2 * kv, dim}, 1);
  const RopeFrequencies f = ops::rope_frequencies(dim, kGptOss);
  const Tensor places = device_tensor<int32_t>({tokens}, positions);
  const auto rotated = values_of<float>(ops::rope(qkv.to(test_device()), places, f));
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Guarded k({pages, kv, page_size, dim}, dtype), v({pages, kv, page_size, dim}, dtype);
    const auto before = values_of<float>(k.tensor().to(Dtype::f32));
    const Tensor inv_freq = device_tensor<double>({3}, f.inv_freq),
                 work = qkv.to(test_device()).reshape({tokens, 48});
    Tensor copy = Tensor::empty(work.shape(), Dtype::f32, test_device());
    runtime(test_device()).copy(test_device().index, nullptr, copy.data(), work.data(), work.nbytes());
    const Tensor cos_sin = Tensor::empty({tokens, 3, 2}, Dtype::f32, test_device());
    const RopeTableArgs table_args{places.data_as<int32_t>(),
                                   inv_freq.data_as<double>(),
                                   cos_sin.data_as<float>(),
                                   tokens,
                                   3,
                                   f.concentration};
    call_kernel(test_device(), &Kernels::rope_table, "rope_table", nullptr, table_args);
    const Tensor blocks = device_tensor<int32_t>({2, 2}, table),
                 rows = device_tensor<int32_t>({tokens}, slots);
    const RopeKvArgs args{
        .qkv = copy.data_as<float>(),
        .table = cos_sin.data_as<float>(),
        .slots = rows.data_as<int32_t>(),
        .positions = places.data_as<int32_t>(),
        .kv = {k.data(), v.data(), blocks.data_as<int32_t>(), 2, static_cast<int32_t>(page_size), dtype},
        .tokens = tokens,
        .num_heads = heads,
        .num_kv_heads = kv,
        .head_dim = dim};
    call_kernel(test_device(), &Kernels::rope_kv, "rope_kv", nullptr, args);
    k.expect_intact("keys"), v.expect_intact("values");
    std::vector<float> want_k = before, want_v = before;
    for (size_t t = 0; t < 3; ++t)
      for (size_t h = 0; h < 2; ++h)
        for (size_t d = 0; d < 6; ++d) {
          const auto block = static_cast<size_t>(positions[t] / 4 % 2),
                     page = static_cast<size_t>(table[static_cast<size_t>(slots[t]) * 2 + block]);
          const size_t to = ((page * 2 + h) * 4 + static_cast<size_t>(positions[t] % 4)) * 6 + d;
          const float key = rotated[(t * 8 + 4 + h) * 6 + d],
                      value = qkv.data_as<float>()[(t * 8 + 6 + h) * 6 + d];
          want_k[to] = dtype == Dtype::f32 ? key : to_float(to_bf16(key));
          want_v[to] = dtype == Dtype::f32 ? value : to_float(to_bf16(value));
        }
    expect_same_bits(values_of<float>(k.tensor().to(Dtype::f32)), want_k, "keys");
    expect_same_bits(values_of<float>(v.tensor().to(Dtype::f32)), want_v, "values");
    const auto q = values_of<float>(copy);
    for (size_t t = 0; t < 3; ++t)
      expect_same_bits(std::span(q).subspan(t * 48, 24), std::span(rotated).subspan(t * 48, 24), "queries");
  }
}

}  // namespace
}  // namespace trivium::testing
