// Sampling on the CPU; the definition is in ops/sampling.h.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/random.h"
#include "cpu/kernels.h"

namespace trivium::cpu {
namespace {

struct Candidate {
  float logit;
  int32_t id;
  bool operator<(const Candidate& other) const {  // descending logit, then ascending id
    return logit != other.logit ? logit > other.logit : id < other.id;
  }
};

// Index of the first maximum, or -1 when the row holds a NaN.
int32_t first_maximum(const float* z, int64_t vocab) {
  int64_t best = 0;
  bool nan = false;
  for (int64_t i = 0; i < vocab; ++i) {
    nan |= z[i] != z[i];
    if (z[i] > z[best]) best = i;
  }
  return nan ? -1 : static_cast<int32_t>(best);
}

// Candidates in their order, sorted only as far as somebody looks: a draw rarely reaches past the
// first few hundred of 200,000.
class Ranking {
 public:
  explicit Ranking(std::vector<Candidate> candidates) : items_(std::move(candidates)) {}
  size_t size() const { return items_.size(); }
  void truncate(size_t count) {
    if (count >= items_.size()) return;
    sort_to(count);
    items_.resize(count);
  }
  const Candidate& operator[](size_t i) {
    sort_to(i + 1);
    return items_[i];
  }

 private:
  void sort_to(size_t count) {
    while (sorted_ < count) {
      const size_t end = std::min(items_.size(), std::max<size_t>(count, 2 * sorted_ + 64));
      const auto first = items_.begin() + static_cast<std::ptrdiff_t>(sorted_);
      const auto last = items_.begin() + static_cast<std::ptrdiff_t>(end);
      if (end < items_.size()) std::nth_element(first, last, items_.end());
      std::sort(first, last);
      sorted_ = end;
    }
  }

  std::vector<Candidate> items_;
  size_t sorted_ = 0;
};

int32_t draw(const SampleParams& params, const float* z, int64_t vocab, float maximum) {
  const float inverse = 1.0f / params.temperature;
  const auto probability = [&](float logit) {
    const float p = std::exp((logit - maximum) * inverse);
    return std::isnan(p) ? 0.0f : p;  // of -inf at infinite temperature
  };
  std::vector<Candidate> all;
  all.reserve(static_cast<size_t>(vocab));
  double total = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const float p = probability(z[i]);
    if (p < params.min_p) continue;  // never the largest, which is exp(0) = 1
    all.push_back({z[i], static_cast<int32_t>(i)});
    total += p;
  }
  Ranking ranking(std::move(all));
  if (const int32_t top_k = params.top_k; top_k > 0 && static_cast<size_t>(top_k) < ranking.size()) {
    ranking.truncate(static_cast<size_t>(top_k));
    total = 0;
    for (size_t i = 0; i < ranking.size(); ++i) total += probability(ranking[i].logit);
  }
  if (const double top_p = params.top_p; top_p > 0 && top_p < 1) {
    double sum = 0;
    size_t count = 0;
    while (count < ranking.size() && sum <= top_p * total) sum += probability(ranking[count++].logit);
    ranking.truncate(count);
    total = sum;
  }
  const double target = philox_uniform(params.seed, params.step) * total;
  double sum = 0;
  for (size_t i = 0; i + 1 < ranking.size(); ++i)
    if ((sum += probability(ranking[i].logit)) > target) return ranking[i].id;
  return ranking[ranking.size() - 1].id;
}

}  // namespace

void sample(const SampleArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    const float* z = a.logits + row * a.vocab;
    const SampleParams& params = a.params[row];
    const int32_t best = first_maximum(z, a.vocab);
    // An infinite maximum, or a temperature whose inverse overflows, leaves no distribution to draw from: the
    // first maximum is the answer.
    const bool greedy =
        !(params.temperature > 0) || std::isinf(1.0f / params.temperature) || best < 0 || std::isinf(z[best]);
    a.tokens[row] = greedy ? best : draw(params, z, a.vocab, z[best]);
  });
}

}  // namespace trivium::cpu
