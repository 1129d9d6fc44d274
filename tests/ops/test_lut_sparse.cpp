// Sparse LUT layers against loops over their synapses: the order of every sum, whatever the form of the
// lists, the number of threads and how rows are cut.
#include "core/parallel.h"
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

enum class Lists { shared, same_for_rows, general };

// Targets that ascend and may repeat; some rows have none.
std::vector<int32_t> random_list(Random& random, int64_t outputs, int64_t longest) {
  std::vector<int32_t> list(static_cast<size_t>(random.integer(0, longest)));
  for (int32_t& o : list) o = static_cast<int32_t>(random.integer(0, outputs - 1));
  std::sort(list.begin(), list.end());
  return list;
}

LutCase sparse_case(lut::LayerOptions o, Lists lists, int64_t batch, int64_t longest, uint64_t seed) {
  Random random(seed);
  const int64_t tables = o.anchors.dim(0), cells = lut::Layer(o, Device{}).cells();
  std::vector<int64_t> pointers{0};
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < tables; ++t) {
    const auto one = random_list(random, o.outputs, longest);
    for (int64_t c = 0; c < (lists == Lists::shared ? 1 : cells); ++c) {
      const auto row = lists == Lists::general ? random_list(random, o.outputs, longest) : one;
      targets.insert(targets.end(), row.begin(), row.end());
      pointers.push_back(static_cast<int64_t>(targets.size()));
    }
  }
  o.pointers = host_tensor<int64_t>({static_cast<int64_t>(pointers.size())}, pointers);
  o.targets = host_i32({static_cast<int64_t>(targets.size())}, targets);
  return LutCase(o, batch, seed);
}

// sum += the synapses of row (t, cell), for each output, as the fixed or the float mode adds them.
struct Synapses {
  const LutCase& c;
  const double unit = (1 << 20) - 1;
  bool fixed() const { return c.options.int_rescaler > 0; }

  template <class Sum>
  void add(int64_t t, int64_t cell, std::vector<Sum>& sums) const {
    const int64_t cells = c.layer->cells(), *p = c.options.pointers.data_as<int64_t>();
    const bool general = c.options.pointers.dim(0) > c.layer->num_tables() + 1;
    const int64_t row = t * cells + cell, list = general ? row : t, count = p[list + 1] - p[list];
    const float* w = c.w.data_as<float>() + (general ? p[row] : cells * p[t] + cell * count);
    for (int64_t k = 0; k < count; ++k) {
      auto& sum = sums[static_cast<size_t>(c.options.targets.data_as<int32_t>()[p[list] + k])];
      if constexpr (std::is_same_v<Sum, int64_t>)
        sum += static_cast<int64_t>(double{w[k]} * unit * c.options.int_rescaler);
      else
        sum += w[k];
    }
  }
  float value(float sum) const { return sum; }
  float value(int64_t sum) const {
    return static_cast<float>(static_cast<double>(sum) / unit / c.options.int_rescaler);
  }
};

template <class Sum>
std::vector<float> expected_outputs(const LutCase& c, const lut::Saved& saved) {
  const Synapses synapses{c};
  const auto index = values_of<int32_t>(saved.index);
  const auto pe = c.pe.rank() ? values_of<int32_t>(saved.pe_index) : std::vector<int32_t>();
  const int64_t tables = c.layer->num_tables(), nc = c.layer->num_anchors(), npe = c.options.positional_dim;
  const auto outputs = static_cast<size_t>(c.options.outputs);
  const auto at = [&](int64_t row, int64_t t) { return index[static_cast<size_t>(row * tables + t)]; };
  std::vector<float> y;
  for (int64_t row = 0; row < c.batch * c.length; ++row) {
    std::vector<Sum> sums(outputs);
    for (int64_t t = 0; t < tables; ++t) {
      if (!c.layer->is_sequence()) {
        synapses.add(t, at(row, t), sums);
        continue;
      }
      std::vector<Sum> part(outputs);
      const int64_t j = row % c.length;
      for (int64_t i = 0; i < j; ++i) {
        const int64_t e = npe ? pe[static_cast<size_t>((j - i - 1) * tables + t)] : 0;
        synapses.add(t, int64_t{at(row, t)} << (nc + npe) | int64_t{at(row - j + i, t)} << npe | e, part);
      }
      for (size_t o = 0; o < outputs; ++o) sums[o] += part[o];
    }
    for (const Sum sum : sums) y.push_back(synapses.value(sum));
  }
  return y;
}

void expect_sums_in_order(LutCase c, const std::string& what) {
  for (const double rescaler : {0.0, 10.0}) {
    c.options.int_rescaler = rescaler;
    c.rebuild();
    const auto got = c.forward();
    expect_same_bits(
        values_of<float>(got.y),
        rescaler > 0 ? expected_outputs<int64_t>(c, got.saved) : expected_outputs<float>(c, got.saved),
        what + (rescaler > 0 ? ", fixed point" : ", float"));
  }
}

TEST(LutSparse, OutputsAddTheirSynapsesInOrder) {
  for (const Lists lists : {Lists::shared, Lists::same_for_rows, Lists::general})
    for (const int64_t outputs : {1, 7, 1100})  // the last is cut in ranges where rows are few
      for (const int64_t batch : {0, 1, 9})
        expect_sums_in_order(sparse_case(rows_layer(6, 11, 2, outputs), lists, batch, 20, 3),
                             concat("lists ", static_cast<int>(lists), ", O ", outputs, ", B ", batch));
}

TEST(LutSparse, PairsAddTheirSynapsesInOrder) {
  for (const Lists lists : {Lists::shared, Lists::same_for_rows, Lists::general})
    for (const int64_t npe : {0, 2})
      for (const int64_t outputs : {5, 600})
        expect_sums_in_order(sparse_case(sequence_layer(6, 5, 2, npe, outputs, 7), lists, 2, 12, 4),
                             concat("lists ", static_cast<int>(lists), ", Npe ", npe, ", O ", outputs));
}

TEST(LutSparse, NoSynapsesGiveZeros) {
  for (auto o : {rows_layer(6, 3, 2, 4), sequence_layer(6, 3, 2, 2, 4, 5)}) {
    const LutCase c = sparse_case(o, Lists::shared, 2, 0, 1);
    const auto forward = c.forward();
    for (const float y : values_of<float>(forward.y)) EXPECT_EQ(y, 0);
    for (const float g : values_of<float>(c.backward(forward.saved).gx)) EXPECT_EQ(g, 0);
  }
}

TEST(LutSparse, DecodeHasTheBitsOfWholeSequences) {
  for (const Lists lists : {Lists::shared, Lists::general}) {
    const LutCase c = sparse_case(sequence_layer(6, 5, 2, 2, 600, 6), lists, 1, 12, 5);
    const auto y = values_of<float>(c.forward().y);
    auto cache = lut::make_cache(*c.layer, 1);
    for (int32_t j = 0; j < 6; ++j) {
      const Tensor x = c.x.reshape({6, 6}).slice(j, j + 1).to(test_device());
      const Tensor step = lut::decode(*c.layer, c.weights(), x, c.embeddings(), host_i32({1}, {0}),
                                      host_i32({1}, {j}), cache, *c.work);
      expect_same_bits(values_of<float>(step), std::span(y).subspan(static_cast<size_t>(j) * 600, 600),
                       concat("position ", j));
    }
  }
}

// Lists that are the same for all rows of a table are stored once, and change no result.
TEST(LutSparse, SharedListsAreFoundAndGiveTheSameGradients) {
  LutCase shared = sparse_case(rows_layer(6, 11, 2, 40), Lists::shared, 9, 20, 3);
  LutCase rows = sparse_case(rows_layer(6, 11, 2, 40), Lists::same_for_rows, 9, 20, 3);
  const LutCase general = sparse_case(rows_layer(6, 11, 2, 40), Lists::general, 9, 20, 3);
  EXPECT_EQ(shared.layer->table(nullptr).form, LutForm::shared);
  EXPECT_EQ(rows.layer->table(nullptr).form, LutForm::shared);
  EXPECT_EQ(general.layer->table(nullptr).form, LutForm::general);
  ASSERT_EQ(rows.options.pointers.dim(0), 45);
  using Policy = lut::WeightPolicy;
  for (const Policy policy : {Policy::dense, Policy::rows}) {
    const auto a = shared.backward(shared.forward().saved, {.policy = policy});
    const auto b = rows.backward(rows.forward().saved, {.policy = policy});
    expect_same(b.gx, a.gx, "gx");
    expect_same(b.gw, a.gw, "gw");
    if (policy == Policy::rows) {
      EXPECT_EQ(values_of<int64_t>(a.rows), values_of<int64_t>(b.rows));
    }
  }
}

TEST(LutSparse, TheNumberOfThreadsChangesNoBit) {
  if (test_device() != Device{}) GTEST_SKIP() << "threads are the cpu's";
  const LutCase c = sparse_case(sequence_layer(6, 5, 2, 2, 1500, 4), Lists::general, 1, 50, 6);
  const int automatic = num_threads();
  set_num_threads(1);
  const auto one = values_of<float>(c.forward().y);
  for (const int threads : {2, 3, 7}) {
    set_num_threads(threads);
    expect_same_bits(values_of<float>(c.forward().y), one, concat(threads, " threads"));
  }
  set_num_threads(automatic);
}

}  // namespace
}  // namespace trivium::testing
