// Attention with sinks, windows and grouped heads, over contiguous and paged keys and values.
#include <numeric>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

struct Case {
  int64_t tokens, positions, heads, kv_heads, dim, window;
  Tensor q, k, v, sinks;
  float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(dim))); }
  std::string name() const {
    return concat(tokens, " of ", positions, " positions, heads ", heads, "/", kv_heads, ", head_dim ", dim,
                  ", window ", window);
  }
};

Case random_case(int64_t tokens, int64_t positions, int64_t heads, int64_t kv_heads, int64_t dim,
                 int64_t window, double scale = 1) {
  Case c{tokens, positions, heads, kv_heads, dim, window, {}, {}, {}, {}};
  const auto seed = static_cast<uint64_t>(positions * 100 + heads);
  c.q = random_normal({tokens, heads, dim}, seed, scale);
  c.k = random_normal({positions, kv_heads, dim}, seed + 1).to(Dtype::bf16).to(Dtype::f32);
  c.v = random_normal({positions, kv_heads, dim}, seed + 2).to(Dtype::bf16).to(Dtype::f32);
  c.sinks = random_normal({heads}, seed + 3);
  return c;
}

Tensor run(const Case& c, Dtype kv = Dtype::f32) {
  const Device d = test_device();
  return ops::attention(c.q.to(d), c.k.to(kv).to(d), c.v.to(kv).to(d),
                        c.sinks.data() ? c.sinks.to(d) : Tensor(), c.window, c.scale());
}

// The definition in float64; checked against the oracle's values below.
std::vector<double> reference(const Case& c) {
  const auto at = [](const Tensor& t, int64_t i) { return static_cast<double>(t.data_as<float>()[i]); };
  std::vector<double> out(static_cast<size_t>(c.q.numel()));
  for (int64_t t = 0; t < c.tokens; ++t)
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t position = c.positions - c.tokens + t, group = h / (c.heads / c.kv_heads);
      const int64_t first = c.window ? std::max<int64_t>(0, position - c.window + 1) : 0;
      std::vector<double> scores;
      for (int64_t j = first; j <= position; ++j) {
        double s = 0;
        for (int64_t d = 0; d < c.dim; ++d)
          s += at(c.q, (t * c.heads + h) * c.dim + d) * at(c.k, (j * c.kv_heads + group) * c.dim + d);
        scores.push_back(s / std::sqrt(static_cast<double>(c.dim)));
      }
      double maximum = *std::max_element(scores.begin(), scores.end());
      if (c.sinks.data()) maximum = std::max(maximum, at(c.sinks, h));
      double total = c.sinks.data() ? std::exp(at(c.sinks, h) - maximum) : 0;
      double* o = &out[static_cast<size_t>((t * c.heads + h) * c.dim)];
      for (int64_t j = first; j <= position; ++j) {
        const double p = std::exp(scores[static_cast<size_t>(j - first)] - maximum);
        total += p;
        for (int64_t d = 0; d < c.dim; ++d) o[d] += p * at(c.v, (j * c.kv_heads + group) * c.dim + d);
      }
      for (int64_t d = 0; d < c.dim; ++d) o[d] /= total;
    }
  return out;
}

// Scores are exponents: an error of 2^-24 relative to a score of s is s 2^-24 in the result.
constexpr Bounds kAttention{1e-10, 1e-5};
constexpr Bounds kHugeScores{1e-7, 1e-3};

TEST(Attention, MatchesTheOracleAtTheEdgesOfTheWindow) {
  const Golden golden("attention");
  for (int i = 0; golden.has(concat(i, ".q")); ++i) {
    const auto name = [&](const char* key) { return concat(i, '.', key); };
    Case c{};
    c.q = golden.host(name("q")), c.k = golden.host(name("k")), c.v = golden.host(name("v"));
    c.sinks = golden.host(name("sinks"));
    c.tokens = c.q.dim(0), c.heads = c.q.dim(1), c.dim = c.q.dim(2);
    c.positions = c.k.dim(0), c.kv_heads = c.k.dim(1), c.window = golden.number(name("window"));
    const Bounds bounds = i == 5 ? kHugeScores : kAttention;
    for (const bool sinks : {true, false}) {
      if (!sinks) c.sinks = {};
      const auto want = golden.doubles(name(sinks ? "y" : "y_without_sinks"));
      const std::string what = concat(c.name(), sinks ? ", sinks" : "");
      expect_close(run(c), want, bounds, what);
      expect_close(run(c, Dtype::bf16), want, bounds, what + ", bfloat16 keys and values");
      const auto own = reference(c);
      for (size_t e = 0; e < own.size(); ++e) ASSERT_NEAR(own[e], want[e], 1e-12) << what;
    }
  }
}

TEST(Attention, MatchesTheDefinitionForEveryHeadSizeGroupAndLength) {
  for (const int64_t dim : {16, 20, 64, 80})
    for (const int64_t group : {1, 2, 3, 8})
      for (const int64_t window : {0, 5, 128})
        for (const int64_t positions : {1, 6, 129}) {
          const Case c = random_case(std::min<int64_t>(positions, 3), positions, 2 * group, 2, dim, window);
          expect_close(run(c), reference(c), kAttention, c.name());
        }
  for (const int64_t window : {0, 128}) {
    const Case c = random_case(2, 1000, 8, 1, 64, window);
    expect_close(run(c), reference(c), kAttention, c.name());
    expect_close(run(c, Dtype::bf16), reference(c), kAttention, c.name());
  }
}

TEST(Attention, AWindowWiderThanAnySequenceSeesAll) {
  for (const int64_t window :
       {int64_t{1000}, int64_t{INT32_MAX}, int64_t{1} << 36, int64_t{1} << 41, INT64_MAX}) {
    Case c = random_case(3, 300, 4, 2, 16, 0);
    const auto want = reference(c);
    c.window = window;
    expect_close(run(c), want, kAttention, c.name());
  }
}

TEST(Attention, PrefillEqualsOneByOneBitForBit) {
  for (const int64_t window : {0, 1, 5, 16})
    for (const Dtype kv : {Dtype::f32, Dtype::bf16}) {
      const Case all = random_case(37, 37, 6, 2, 20, window);
      const auto together = values_of<float>(run(all, kv));
      const size_t row = static_cast<size_t>(all.heads * all.dim);
      for (int64_t t = 0; t < 37; ++t) {
        Case one = all;
        one.tokens = 1, one.positions = t + 1;
        one.q = all.q.slice(t, t + 1), one.k = all.k.slice(0, t + 1), one.v = all.v.slice(0, t + 1);
        expect_same_bits(values_of<float>(run(one, kv)),
                         std::span(together).subspan(static_cast<size_t>(t) * row, row),
                         concat(all.name(), " at ", t));
      }
    }
}

TEST(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  const Case c = random_case(9, 33, 8, 4, 64, 0);
  Tensor want;
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    const Tensor y = run(c);
    if (threads == 1) want = y;
    expect_same_bits(y, want, concat(threads, " threads"));
  }
}

TEST(Attention, ASinkAloneTakesTheWholeWeight) {
  Case c = random_case(3, 9, 4, 2, 16, 5);
  std::fill_n(c.sinks.data_as<float>(), 4, 1e4f);
  for (const float y : values_of<float>(run(c))) EXPECT_LT(std::abs(y), 1e-30f);
}

TEST(Attention, HugeScoresPickOneKey) {
  const Case c = random_case(4, 50, 4, 4, 64, 0, 1e6);
  expect_close(run(c), reference(c), kF32, c.name());
  Case largest = random_case(1, 3, 1, 1, 16, 0);
  for (int64_t i = 0; i < 16; ++i) largest.q.data_as<float>()[i] = 1e37f;
  for (int64_t i = 0; i < 48; ++i) largest.k.data_as<float>()[i] = i < 16 ? -1.0f : i < 32 ? 0.5f : 0.25f;
  const auto values = doubles_of(largest.v);
  expect_close(run(largest), std::span(values).subspan(16, 16), kF32, "scores near the largest float");
}

TEST(Attention, NanInQueryKeyOrValueReachesTheResult) {
  for (const int64_t at : {0, 15, 19}) {
    const auto with_nan = [&](Tensor Case::*member, int64_t index) {
      Case c = random_case(2, 6, 2, 2, 20, 0);
      Tensor& t = c.*member;
      t.data_as<float>()[index] = NAN;
      return values_of<float>(run(c));
    };
    const auto query = with_nan(&Case::q, at);  // token 0, head 0
    expect_all_nan(std::span(query).first(20), concat("query ", at));
    EXPECT_FALSE(std::isnan(query[20]) || std::isnan(query[40]));
    for (const int64_t position : {0, 2, 4}) {
      const auto key = with_nan(&Case::k, position * 40 + at);
      expect_all_nan(std::span(key).first(20), concat("key ", position));
      expect_all_nan(std::span(key).subspan(40, 20), concat("key ", position));
      EXPECT_FALSE(std::isnan(key[20]));
      const auto value = with_nan(&Case::v, position * 40 + at);
      EXPECT_TRUE(std::isnan(value[static_cast<size_t>(at)]));
      EXPECT_FALSE(std::isnan(value[static_cast<size_t>(at + 20)]));
    }
    EXPECT_FALSE(std::isnan(with_nan(&Case::k, 5 * 40 + at)[0])) << "a later key is not visible";
  }
}

// The same keys and values in pages of `page_size` shuffled over a pool, positions beyond the ring
// overwritten.
TEST(Attention, PagesAndRingsGiveTheBitsOfContiguousMemory) {
  const int64_t page_size = 4, slots = 2, slot = 1, pool = 23;
  for (const int64_t window : {0, 5})
    for (const Dtype out_dtype : {Dtype::f32, Dtype::bf16}) {
      const Case c = random_case(3, 30, 6, 3, 20, window);
      const int64_t blocks = window ? 3 : 8;  // a ring of 12 positions holds the window and the step
      std::vector<int32_t> table(static_cast<size_t>(slots * blocks), -1);
      for (int64_t b = 0; b < blocks; ++b)
        table[static_cast<size_t>(slot * blocks + b)] = static_cast<int32_t>(b * 7 % pool);
      Tensor k = random_normal({pool, c.kv_heads, page_size, c.dim}, 1), v = random_normal(k.shape(), 2);
      for (int64_t j = 0; j < c.positions; ++j)
        for (int64_t h = 0; h < c.kv_heads; ++h) {
          const int64_t page = table[static_cast<size_t>(slot * blocks + j / page_size % blocks)];
          const int64_t to = ((page * c.kv_heads + h) * page_size + j % page_size) * c.dim,
                        from = (j * c.kv_heads + h) * c.dim;
          std::copy_n(c.k.data_as<float>() + from, c.dim, k.data_as<float>() + to);
          std::copy_n(c.v.data_as<float>() + from, c.dim, v.data_as<float>() + to);
        }
      std::vector<int32_t> positions(3);
      std::iota(positions.begin(), positions.end(), 27);
      const Device d = test_device();
      const Tensor q = c.q.to(d), kd = k.to(d), vd = v.to(d), sinks = c.sinks.to(d),
                   tables = device_tensor<int32_t>({slots, blocks}, table),
                   places = device_tensor<int32_t>({3}, positions),
                   rows = device_tensor<int32_t>({3}, std::vector<int32_t>(3, slot));
      Guarded out({3, c.heads, c.dim}, out_dtype);
      const AttentionArgs args{
          .q = q.data_as<float>(),
          .kv = {kd.data(), vd.data(), tables.data_as<int32_t>(), static_cast<int32_t>(blocks),
                 static_cast<int32_t>(page_size), Dtype::f32},
          .slots = rows.data_as<int32_t>(),
          .positions = places.data_as<int32_t>(),
          .sinks = {sinks.data(), Dtype::f32},
          .out = out.data(),
          .tokens = 3,
          .num_heads = c.heads,
          .num_kv_heads = c.kv_heads,
          .head_dim = c.dim,
          .q_stride = c.heads * c.dim,
          .window = window,
          .scale = c.scale(),
          .out_dtype = out_dtype};
      call_kernel(d, &Kernels::attention, "attention", nullptr, args);
      out.expect_intact("attention");
      expect_same_bits(out.tensor().to(Dtype::f32), run(c).to(out_dtype).to(Dtype::f32),
                       concat("window ", window));
    }
}

TEST(Attention, NoQueriesGiveAnEmptyResult) {
  const Case c = random_case(0, 4, 2, 2, 16, 0);
  EXPECT_EQ(run(c).shape(), (Shape{0, 2, 16}));
}

}  // namespace
}  // namespace trivium::testing
