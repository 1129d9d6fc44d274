// Picking tokens: greedy, and draws that depend on logits, parameters, seed and step alone.
#include <map>
#include <numeric>
#include <set>

#include "ops/sampling.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::SampleRow;
using ops::SamplingParams;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<int32_t> pick(const Tensor& logits, const std::vector<SampleRow>& rows) {
  std::vector<int32_t> tokens(rows.size(), -7);
  ops::sample(logits.to(test_device()), rows, tokens);
  return tokens;
}

int32_t pick_one(const std::vector<float>& logits, const SamplingParams& params, uint64_t step = 0) {
  return pick(host_tensor<float>({1, static_cast<int64_t>(logits.size())}, logits), {{params, step}})[0];
}

// `count` draws with steps 0, 1, ... from one row of logits.
std::vector<int32_t> draws(const std::vector<float>& logits, SamplingParams params, int64_t count) {
  const auto vocab = static_cast<int64_t>(logits.size());
  std::vector<int32_t> all;
  for (int64_t done = 0; done < count;) {
    const int64_t rows = std::min<int64_t>(count - done, 500);
    Tensor z = Tensor::empty({rows, vocab}, Dtype::f32);
    std::vector<SampleRow> requests;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy(logits.begin(), logits.end(), z.data_as<float>() + r * vocab);
      requests.push_back({params, static_cast<uint64_t>(done + r)});
    }
    for (const int32_t token : pick(z, requests)) all.push_back(token);
    done += rows;
  }
  return all;
}

// Every candidate of probability 0.03 or more shows among 1000 draws.
std::set<int32_t> kept(const std::vector<float>& logits, const SamplingParams& params) {
  const auto all = draws(logits, params, emulated() ? 1000 : 4000);
  return {all.begin(), all.end()};
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> z;
  for (const double p : probabilities) z.push_back(static_cast<float>(std::log(p)));
  return z;
}

TEST(Sample, GreedyTakesTheFirstMaximum) {
  EXPECT_EQ(pick_one({1, 3, 2, 3}, {}), 1);
  EXPECT_EQ(pick_one({-5}, {}), 0);
  EXPECT_EQ(pick_one({-0.0f, 0.0f}, {}), 0);
  EXPECT_EQ(pick_one({-kInf, -kInf, -3e38f}, {}), 2);
  std::vector<float> wide(5000, -1);
  wide[4999] = 0;
  EXPECT_EQ(pick_one(wide, {}), 4999);
}

TEST(Sample, NanAnywhereGivesMinusOneForThatRowOnly) {
  for (const size_t at : {0, 1, 2})
    for (const float temperature : {0.0f, 1.0f}) {
      Tensor z = random_normal({3, 3}, 1);
      z.data_as<float>()[3 + at] = NAN;
      const SampleRow row{{.temperature = temperature}, 0};
      const auto tokens = pick(z, {row, row, row});
      EXPECT_EQ(tokens[1], -1);
      EXPECT_GE(tokens[0], 0);
      EXPECT_GE(tokens[2], 0);
    }
  EXPECT_EQ(pick_one({kInf, NAN}, {.temperature = 1}), -1);
}

TEST(Sample, InfinitiesAreTakenOrNeverTaken) {
  for (const float temperature : {0.0f, 0.5f, 1e30f, kInf}) {
    const SamplingParams params{.temperature = temperature};
    EXPECT_EQ(pick_one({1, kInf, 5, kInf}, params), 1) << temperature;
    for (const int32_t token : draws({-kInf, 1, -kInf, 0, -kInf}, params, 300))
      EXPECT_TRUE(token == 1 || token == 3);
  }
}

TEST(Sample, TinyTemperaturesAreGreedyAndHugeOnesUniform) {
  for (const float temperature : {1e-45f, 1e-38f, 1e-6f})
    for (const int32_t token : draws({0.5f, 2, 2, 1.5f}, {.temperature = temperature, .top_p = 1}, 50))
      EXPECT_TRUE(token == 1 || token == 2) << token << " at " << temperature;
  for (const float temperature : {1e30f, 3e38f}) {
    const auto all = draws({0, 1000, -1000, 7}, {.temperature = temperature}, 4000);
    for (int32_t id = 0; id < 4; ++id) {
      const auto count = std::count(all.begin(), all.end(), id);
      EXPECT_NEAR(static_cast<double>(count), 1000, 5 * std::sqrt(4000 * 0.25 * 0.75)) << id;
    }
  }
}

TEST(Sample, AgreesWithTheOracleDrawForDraw) {
  const Golden golden("sampling");
  const Tensor logits = golden.host("0.logits"), settings = golden.host("0.settings"),
               list = golden.host("0.draws");
  const int64_t* draw = list.data_as<int64_t>();
  ASSERT_GT(list.dim(0), 400);
  for (int64_t i = 0; i < list.dim(0); ++i, draw += 5) {
    const float* setting = settings.data_as<float>() + 2 * draw[1];
    const SamplingParams params{
        .temperature = setting[0], .top_p = setting[1], .seed = static_cast<uint64_t>(draw[2])};
    const auto tokens = pick(logits.slice(draw[0], draw[0] + 1), {{params, static_cast<uint64_t>(draw[3])}});
    EXPECT_EQ(tokens[0], draw[4]) << "draw " << i << ", temperature " << setting[0] << ", top_p "
                                  << setting[1];
  }
}

TEST(Sample, TopPKeepsTheShortestPrefixThatExceedsIt) {
  const auto z = logs({0.05, 0.5, 0.3, 0.15});
  const auto with = [](float p) { return SamplingParams{.temperature = 1, .top_p = p}; };
  EXPECT_EQ(kept(z, with(1e-6f)), (std::set<int32_t>{1}));
  EXPECT_EQ(kept(z, with(0.49f)), (std::set<int32_t>{1}));
  EXPECT_EQ(kept(z, with(0.51f)), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(kept(z, with(0.79f)), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(kept(z, with(0.81f)), (std::set<int32_t>{1, 2, 3}));
  EXPECT_EQ(kept(z, with(0.96f)), (std::set<int32_t>{0, 1, 2, 3}));
  for (const float off : {0.0f, -1.0f, 1.0f, 2.0f}) EXPECT_EQ(kept(z, with(off)).size(), 4u) << off;
  EXPECT_EQ(kept({0, 0, 0, 0}, with(0.4f)), (std::set<int32_t>{0, 1}))
      << "equal probabilities: lower ids first";
}

TEST(Sample, TopKKeepsTheLargestAndLowerIdsOnTies) {
  const auto with = [](int32_t k) { return SamplingParams{.temperature = 1, .top_k = k}; };
  EXPECT_EQ(kept({1, 1, 2, 1, 1}, with(3)), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(kept({1, 1, 2, 1, 1}, with(1)), (std::set<int32_t>{2}));
  for (const int32_t off : {0, -3, 5, 9}) EXPECT_EQ(kept({1, 1, 2, 1, 1}, with(off)).size(), 5u) << off;
}

TEST(Sample, MinPIsRelativeToTheLargestAfterTheTemperature) {
  const auto z = logs({0.4, 0.3, 0.2, 0.1});
  EXPECT_EQ(kept(z, {.temperature = 1, .min_p = 0.45f}), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(kept(z, {.temperature = 1, .min_p = 0.55f}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(kept(z, {.temperature = 1, .min_p = 1.0f}), (std::set<int32_t>{0}));
  EXPECT_EQ(kept({-5, 3, 3, 2}, {.temperature = 1, .min_p = 1.0f}), (std::set<int32_t>{1, 2}));
  EXPECT_EQ(kept(z, {.temperature = 0.5f, .min_p = 0.45f}), (std::set<int32_t>{0, 1}));
}

TEST(Sample, TopKIsAppliedBeforeTopP) {
  // After top_k = 2 the shares are 0.5/0.8 and 0.3/0.8: top_p = 0.6 leaves the first alone.
  const auto z = logs({0.5, 0.3, 0.15, 0.05});
  EXPECT_EQ(kept(z, {.temperature = 1, .top_p = 0.6f, .top_k = 2}), (std::set<int32_t>{0}));
  EXPECT_EQ(kept(z, {.temperature = 1, .top_p = 0.6f}), (std::set<int32_t>{0, 1}));
}

TEST(Sample, FrequenciesFollowTheSoftmax) {
  std::vector<float> z(100);
  Random random(5);
  for (float& value : z) value = static_cast<float>(random.normal() * 1.5);
  const double temperature = 0.8;
  std::vector<double> p;
  for (const float value : z) p.push_back(std::exp(value / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  const int64_t count = emulated() ? 10000 : 20000;
  std::map<int32_t, int64_t> seen;
  for (const int32_t token : draws(z, {.temperature = static_cast<float>(temperature), .seed = 11}, count))
    ++seen[token];
  double chi_squared = 0;
  int classes = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    const double expected = p[i] / total * static_cast<double>(count);
    if (expected < 5) continue;
    const double off = static_cast<double>(seen[static_cast<int32_t>(i)]) - expected;
    chi_squared += off * off / expected;
    ++classes;
  }
  ASSERT_GT(classes, 60);
  EXPECT_LT(chi_squared,
            classes + 5 * std::sqrt(2.0 * classes));  // mean and standard deviation of chi-squared
  EXPECT_GT(chi_squared, classes - 5 * std::sqrt(2.0 * classes));
}

TEST(Sample, ADrawDependsOnSeedAndStepNotOnTheRow) {
  const Tensor one = random_normal({1, 300}, 3);
  const SamplingParams params{.temperature = 1.3f, .top_p = 0.95f, .seed = 99};
  const int32_t want = pick(one, {{params, 17}})[0];
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    Tensor z = random_normal({40, 300}, 4);
    std::vector<SampleRow> rows(40, {{.temperature = 0.7f, .seed = 1}, 3});
    for (const int64_t r : {0, 1, 23, 39}) {
      std::copy_n(one.data_as<float>(), 300, z.data_as<float>() + r * 300);
      rows[static_cast<size_t>(r)] = {params, 17};
    }
    const auto tokens = pick(z, rows);
    for (const size_t r : {0, 1, 23, 39}) EXPECT_EQ(tokens[r], want) << "row " << r;
  }
  std::set<int32_t> others;
  for (uint64_t step = 0; step < 50; ++step) others.insert(pick(one, {{params, step}})[0]);
  EXPECT_GT(others.size(), 10u) << "steps must differ";
}

TEST(Sample, NoRowsAreNoWork) { EXPECT_TRUE(pick(Tensor::empty({0, 5}, Dtype::f32), {}).empty()); }

}  // namespace
}  // namespace trivium::testing
