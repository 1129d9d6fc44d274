// Draws from rows wider than a block, against a float64 reference that sorts them: ties, plateaus, steps
// below the resolution of a histogram, infinities, and rows at every alignment.
#include <algorithm>
#include <functional>
#include <numeric>

#include "core/random.h"
#include "ops/sampling.h"
#include "support/compare.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::SampleRow;
using ops::SamplingParams;

// The definition of ops/sampling.h, with u, top_p and min_p scaled by 1 + nudge.
int32_t reference(std::span<const float> z, const SampleRow& row, double nudge) {
  const double maximum = static_cast<double>(*std::max_element(z.begin(), z.end()));
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return z[static_cast<size_t>(a)] > z[static_cast<size_t>(b)];
  });
  const SamplingParams& p = row.params;
  if (p.temperature == 0) return order[0];
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(z[static_cast<size_t>(id)]) - maximum) /
                    static_cast<double>(p.temperature));
  };
  std::erase_if(order, [&](int32_t id) { return weight(id) < static_cast<double>(p.min_p) * (1 + nudge); });
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size()) order.resize(static_cast<size_t>(p.top_k));
  double total = 0;
  for (const int32_t id : order) total += weight(id);
  if (p.top_p > 0 && p.top_p < 1) {
    double sum = 0;
    size_t kept = 0;
    while (kept < order.size() && sum <= static_cast<double>(p.top_p) * (1 + nudge) * total)
      sum += weight(order[kept++]);
    order.resize(kept);
    total = sum;
  }
  const double target = static_cast<double>(philox_uniform(p.seed, row.step)) * (1 + nudge) * total;
  double sum = 0;
  for (const int32_t id : order)
    if ((sum += weight(id)) > target) return id;
  return order.back();
}

const std::vector<SamplingParams>& settings() {
  static const std::vector<SamplingParams> kList{
      {},
      {.temperature = 1},
      {.temperature = 0.2f},
      {.temperature = 1, .top_p = 0.9f},
      {.temperature = 1, .top_k = 50},
      {.temperature = 0.7f, .top_p = 0.99f, .top_k = 3000, .min_p = 1e-4f},
      {.temperature = 1e30f},
      {.temperature = 1e30f, .top_p = 0.5f, .top_k = 777},
      {.temperature = 5, .top_p = 0.3f, .min_p = 0.001f},
  };
  return kList;
}

// `rows` rows of `vocab` values of make(), the settings in turn; draws that the precision of float32 could
// decide either way are left out, and must be few.
void check(const char* what, int64_t vocab, const std::function<float(Random&, int64_t)>& make,
           int64_t rows = emulated() ? 9 : 72) {
  Tensor z = Tensor::empty({rows, vocab}, Dtype::f32);
  Random random(17);
  std::vector<SampleRow> requests;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < vocab; ++i) z.data_as<float>()[r * vocab + i] = make(random, i);
    SamplingParams params = settings()[static_cast<size_t>(r) % settings().size()];
    params.seed = random.next();
    requests.push_back({params, random.next()});
  }
  std::vector<int32_t> tokens(static_cast<size_t>(rows), -7);
  ops::sample(z.to(test_device()), requests, tokens);
  int64_t decided = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::span row(z.data_as<float>() + r * vocab, static_cast<size_t>(vocab));
    const SampleRow& request = requests[static_cast<size_t>(r)];
    const int32_t want = reference(row, request, 0);
    if (want != reference(row, request, 1e-6) || want != reference(row, request, -1e-6)) continue;
    ++decided;
    EXPECT_EQ(tokens[static_cast<size_t>(r)], want)
        << what << ", vocab " << vocab << ", setting " << r % static_cast<int64_t>(settings().size());
  }
  EXPECT_GE(decided, rows * 7 / 9) << what;
}

constexpr int64_t kWide = 20011;

TEST(SampleWide, NormalLogitsAtEveryAlignmentAndBlockSize) {
  for (const int64_t vocab : {63, 65, 257, 1024, 1026, 4097, 16385}) {
    check("normal", vocab, [](Random& r, int64_t) { return static_cast<float>(3 * r.normal()); });
  }
  check("normal", kWide, [](Random& r, int64_t) { return static_cast<float>(3 * r.normal()); });
}

TEST(SampleWide, TheVocabularyOfGptOss) {
  check(
      "200k", 201088, [](Random& r, int64_t) { return static_cast<float>(2.5 * r.normal()); },
      emulated() ? 3 : 18);
}

TEST(SampleWide, PlateausAreDividedById) {
  check("equal", kWide, [](Random&, int64_t) { return -2.5f; });
  check("signed zeros", kWide, [](Random&, int64_t i) { return i % 3 ? 0.0f : -0.0f; });
  check("four values", kWide, [](Random& r, int64_t) { return static_cast<float>(r.integer(0, 3)); });
}

TEST(SampleWide, StepsFarBelowABin) {
  check("ramp", kWide,
        [](Random&, int64_t i) { return 1 + static_cast<float>((i * 7919) % kWide) * 0x1p-22f; });
  check("close to zero", kWide,
        [](Random& r, int64_t) { return static_cast<float>(r.normal() * std::exp(-40 * r.uniform())); });
}

TEST(SampleWide, MostOfTheRowHasNoWeight) {
  check("infinities", kWide, [](Random& r, int64_t i) {
    return i % 11 ? -std::numeric_limits<float>::infinity() : static_cast<float>(r.normal());
  });
  check("far away", kWide,
        [](Random& r, int64_t i) { return i % 101 ? -1e4f : static_cast<float>(r.normal()); });
}

}  // namespace
}  // namespace trivium::testing
