// Different ways to one result: staged and fused, sparse and dense, policies, decode and whole sequences.
#include <cstring>
#include <numeric>

#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

// Integer weights and gradients: sums are exact in any order, so the paths must agree in every bit.
std::vector<LutCase> staged_cases() {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(7, 5, 3, 37), 4, 1, true);
  cases.emplace_back(rows_layer(7, 5, 3, 6), 4, 2, true);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return row % 3 != 0 && (row + o) % 2 == 0; }, false);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 5, 7), 2, 3, true);
  cases.emplace_back(sequence_layer(6, 3, 2, 0, 33, 6), 2, 4, true);
  cases.emplace_back(sequence_layer(6, 2, 1, 3, 6, 5), 3, 5, true);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row + o) % 3 == 0; }, true);
  return cases;
}

TEST(LutPaths, StagedEqualsFused) {
  for (LutCase& c : staged_cases())
    for (const int64_t group_size : {1, 3, 32}) {
      c.options.group_size = group_size;
      c.rebuild();
      const auto fused = c.forward(), staged = c.forward(true, true);
      expect_same(staged.y, fused.y, "y");
      const auto want = c.backward(fused.saved), got = c.backward(fused.saved, {}, true);
      expect_same(got.gx, want.gx, "gx");
      expect_same(got.gw, want.gw, "gw");
      if (c.pe.rank()) expect_same(got.gpe, want.gpe, "gpe");
    }
}

// With weights of one, y counts the rows that fire: B * Nt * S (S - 1) / 2 in all.
TEST(LutPaths, FiringStatisticsCountEveryPairOnce) {
  LutCase c(sequence_layer(6, 3, 2, 2, 5, 7), 2, 3);
  for (int64_t i = 0; i < c.w.numel(); ++i) c.w.data_as<float>()[i] = 1;
  for (const bool staged : {false, true}) {
    const auto y = doubles_of(c.forward(true, staged).y);
    EXPECT_EQ(std::accumulate(y.begin(), y.end(), 0.0), 5 * 2 * 3 * 7 * 6 / 2);
  }
}

TEST(LutPaths, SparseWithAllSynapsesEqualsFullyConnected) {
  for (const bool sequence : {false, true})
    for (const bool shared : {false, true}) {
      LutCase full(sequence ? sequence_layer(6, 3, 2, 1, 9, 5) : rows_layer(7, 5, 3, 9), 3, 20, true);
      LutCase sparse = full;
      make_sparse(
          sparse, [](int64_t, int64_t) { return true; }, shared);
      const auto a = full.forward(), b = sparse.forward();
      const auto g = full.backward(a.saved), h = sparse.backward(b.saved);
      expect_same(b.y, a.y, "y");
      expect_same(h.gx, g.gx, "gx");
      expect_same(h.gw, g.gw, "gw");
    }
}

TEST(LutPaths, SparseEqualsFullyConnectedWithZeros) {
  const auto keep = [](int64_t row, int64_t o) { return (row * 7 + o) % 3 == 0; };
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(7, 5, 3, 9), 3, 21, true);
  cases.emplace_back(sequence_layer(6, 3, 2, 1, 9, 5), 3, 21, true);
  cases.emplace_back(product_layer(4, 3, 3, 2, 9, 4, false), 2, 21, true);
  cases.emplace_back(product_layer(3, 3, 3, 3, 9, 4, true), 2, 21, true);
  for (LutCase& full : cases) {
    LutCase sparse = full;
    make_sparse(sparse, keep, false);
    full.w = full.w.to(Dtype::f64).to(Dtype::f32);
    std::vector<double> expected;
    for (int64_t i = 0; i < full.w.numel(); ++i)
      if (!keep(i / 9, i % 9)) full.w.data_as<float>()[i] = 0;
    const auto a = full.forward(), b = sparse.forward();
    const auto g = full.backward(a.saved), h = sparse.backward(b.saved);
    expect_same(b.y, a.y, "y");
    expect_same(h.gx, g.gx, "gx");
    const auto gw = doubles_of(g.gw);
    for (size_t i = 0; i < gw.size(); ++i)
      if (keep(static_cast<int64_t>(i) / 9, static_cast<int64_t>(i) % 9)) expected.push_back(gw[i]);
    EXPECT_EQ(doubles_of(h.gw), expected);
  }
}

std::vector<LutCase> policy_cases() {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(7, 5, 3, 6), 4, 30);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 5, 5), 2, 31);
  cases.emplace_back(product_layer(4, 3, 3, 2, 5, 4, false), 2, 32);
  cases.emplace_back(rows_layer(7, 5, 3, 6), 4, 33);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row + o) % 4 == 0; }, false);
  return cases;
}

TEST(LutPaths, RowGradientsAreTheDenseOnesRows) {
  std::vector<LutCase> cases = policy_cases();
  for (LutCase c : policy_cases()) {
    c.options.int_rescaler = 1;
    c.rebuild();
    cases.push_back(c);
  }
  cases.emplace_back(rows_layer(7, 3, 1, 6), 4, 34);             // two cells a table
  cases.emplace_back(rows_layer(7, 3, 6, 40), 30, 35);           // several words of marks
  cases.emplace_back(sequence_layer(6, 3, 1, 0, 33, 4), 2, 36);  // runs that end inside of one
  cases.emplace_back(sequence_layer(6, 2, 3, 3, 32, 9), 2, 37);
  for (const LutCase& c : cases) {
    const auto forward = c.forward();
    const auto dense = values_of<float>(c.backward(forward.saved).gw);
    const auto rows = c.backward(forward.saved, {.policy = lut::WeightPolicy::rows});
    const auto values = values_of<float>(rows.gw);
    std::vector<float> expanded(dense.size());
    size_t at = 0;
    const bool sparse = c.options.pointers.numel() > 0;
    for (const int64_t row : values_of<int64_t>(rows.rows)) {
      const int64_t* p = sparse ? c.options.pointers.data_as<int64_t>() + row : nullptr;
      const int64_t first = sparse ? p[0] : row * c.options.outputs;
      const int64_t count = sparse ? p[1] - p[0] : c.options.outputs;
      for (int64_t k = 0; k < count; ++k) expanded[static_cast<size_t>(first + k)] = values[at++];
    }
    EXPECT_EQ(at, values.size());
    expect_same_bits(expanded, dense, "gw");
  }
}

TEST(LutPaths, InternalUpdatesTheWeightsAfterTheInputGradient) {
  for (const LutCase& c : policy_cases()) {
    const auto forward = c.forward();
    const auto dense = c.backward(forward.saved);
    const Tensor weights = c.weights().device() == Device{} ? c.w.to(Dtype::f64).to(Dtype::f32) : c.weights();
    const auto internal = lut::backward(*c.layer, weights, c.gy.to(test_device()), forward.saved,
                                        {.policy = lut::WeightPolicy::internal, .eta = 0.25f}, *c.work);
    expect_same(internal.gx, dense.gx, "gx");
    EXPECT_EQ(internal.gw.numel(), 0);
    const auto before = doubles_of(c.w), gradient = doubles_of(dense.gw), after = doubles_of(weights);
    for (size_t i = 0; i < before.size(); ++i)
      ASSERT_NEAR(after[i], before[i] - 0.25 * gradient[i], 1e-5) << i;
  }
}

TEST(LutPaths, NormalizedGradientsHaveALargestMagnitudeOfOne) {
  for (LutCase c : policy_cases()) {
    const auto forward = c.forward();
    const auto plain = doubles_of(c.backward(forward.saved).gw);
    const auto scaled = c.backward(forward.saved, {.normalized = true});
    double largest = 0, pe = 0;
    for (const double v : plain) largest = std::max(largest, std::abs(v));
    const auto got = doubles_of(scaled.gw);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], plain[i] / largest, 1e-6);
    for (int64_t i = 0; i < scaled.gpe.numel(); ++i)
      pe = std::max(pe, std::abs(doubles_of(scaled.gpe)[static_cast<size_t>(i)]));
    EXPECT_EQ(pe, c.pe.rank() ? 1 : 0);
    const auto rows = c.backward(forward.saved, {.policy = lut::WeightPolicy::rows, .normalized = true});
    std::vector<double> kept, dense;  // a row-sparse gradient is scaled by the same factor
    for (const double v : doubles_of(rows.gw))
      if (v != 0) kept.push_back(v);
    for (const double v : got)
      if (v != 0) dense.push_back(v);
    EXPECT_EQ(kept, dense);
    c.gy = Tensor::zeros(c.gy.shape(), Dtype::f32);
    for (const auto policy : {lut::WeightPolicy::dense, lut::WeightPolicy::rows}) {
      const auto zero = c.backward(forward.saved, {.policy = policy, .normalized = true});
      EXPECT_EQ(inner(zero.gw, zero.gw), 0);
    }
  }
}

TEST(LutPaths, ADirtyGradientBufferIsOverwritten) {
  const LutCase c(rows_layer(7, 5, 3, 33), 4, 40);
  const auto forward = c.forward();
  const auto want = c.backward(forward.saved).gw;
  Guarded gw(c.w.shape(), Dtype::f32);
  c.backward(forward.saved, {.gw = gw.tensor()});
  expect_same(gw.tensor(), want, "gw");
  gw.expect_intact("gw");
}

// Gradients of some megabytes take the memory of earlier ones on the CPU, once nobody holds those.
TEST(LutPaths, LargeGradientsStayAsTheyAreWhileTheyAreHeld) {
  const bool emulated = is_gpu(test_device().kind);
  const LutCase c(rows_layer(9, 40, 2, emulated ? 33 : 4096), 64, 42);
  LutCase other = c;
  other.gy = random_normal(c.gy.shape(), 43);
  const auto saved = c.forward().saved;
  for (const auto policy : {lut::WeightPolicy::dense, lut::WeightPolicy::rows}) {
    auto first = c.backward(saved, {.policy = policy});
    const auto want = values_of<float>(first.gw);
    auto second = other.backward(saved, {.policy = policy});
    EXPECT_NE(values_of<float>(second.gw), want);
    expect_same_bits(values_of<float>(first.gw), want, "held");
    first = {};
    second = {};
    expect_same_bits(values_of<float>(c.backward(saved, {.policy = policy}).gw), want, "again");
  }
  const auto rows = c.backward(saved, {.policy = lut::WeightPolicy::rows});
  const LutCase few(rows_layer(9, 40, 2, emulated ? 33 : 4096), 1, 42);  // a result of another size
  const auto small = few.backward(few.forward().saved, {.policy = lut::WeightPolicy::rows});
  EXPECT_EQ(small.rows.numel(), 40);
  EXPECT_GT(rows.rows.numel(), 128);
}

TEST(LutPaths, GivenIndicesGiveTheSameOutputs) {
  const LutCase c(rows_layer(7, 5, 3, 33), 4, 41);
  const auto forward = c.forward();
  expect_same(lut::fill_outputs(*c.layer, c.weights(), forward.saved.index, *c.work), forward.y, "y");
}

// Room for a result of the shape of `like`, full of what it is not.
Tensor room(const Tensor& like) {
  const Tensor host = Tensor::empty(like.shape(), like.dtype());
  std::memset(host.data(), 0x7f, static_cast<size_t>(host.nbytes()));
  return host.to(test_device());
}

TEST(LutPaths, ResultsAreWrittenWhereTheCallerWantsThem) {
  for (const LutCase& c :
       {LutCase(rows_layer(7, 5, 3, 6), 3, 1), LutCase(sequence_layer(6, 3, 2, 2, 5, 5), 2, 1)}) {
    const auto want = c.forward();
    const auto gradients = c.backward(want.saved);
    lut::Forward into{.y = room(want.y), .saved = {}};
    Tensor lut::Saved::*fields[] = {&lut::Saved::index,        &lut::Saved::min_delta,
                                    &lut::Saved::min_index,    &lut::Saved::pe_index,
                                    &lut::Saved::pe_min_delta, &lut::Saved::pe_min_index};
    for (const auto field : fields)
      if ((want.saved.*field).defined()) into.saved.*field = room(want.saved.*field);
    const auto got = lut::forward(*c.layer, c.weights(), c.x.to(test_device()), c.embeddings(), true, *c.work,
                                  false, into);
    EXPECT_EQ(got.y.data(), into.y.data());
    expect_same(into.y, want.y, "y");
    for (const auto field : fields) {
      EXPECT_EQ((got.saved.*field).data(), (into.saved.*field).data());
      if ((want.saved.*field).dtype() == Dtype::f32 && (want.saved.*field).defined())
        expect_same(into.saved.*field, want.saved.*field, "saved");
    }
    EXPECT_EQ(values_of<int32_t>(into.saved.index), values_of<int32_t>(want.saved.index));
    const lut::BackwardOptions options{.gw = room(gradients.gw),
                                       .gx = room(gradients.gx),
                                       .gpe = c.pe.rank() ? room(gradients.gpe) : Tensor()};
    const auto g = c.backward(got.saved, options);
    EXPECT_EQ(g.gx.data(), options.gx.data());
    expect_same(options.gx, gradients.gx, "gx");
    expect_same(options.gw, gradients.gw, "gw");
    if (c.pe.rank()) expect_same(options.gpe, gradients.gpe, "gpe");
  }
}

TEST(LutPaths, UnifiedEmbeddingsEqualOneForEachTable) {
  for (const bool product : {false, true}) {
    LutCase own(product ? product_layer(4, 3, 3, 2, 5, 4, false) : sequence_layer(6, 3, 2, 2, 5, 4), 2, 50);
    LutCase unified = own;
    unified.options.unified_pe = true;
    unified.rebuild();
    unified.pe = random_normal({3, 2}, 51);
    for (int64_t i = 0; i < own.pe.numel(); ++i)
      own.pe.data_as<float>()[i] = unified.pe.data_as<float>()[i / 6 * 2 + i % 2];
    const auto a = own.forward(), b = unified.forward();
    expect_same(b.y, a.y, "y");
    const auto each = doubles_of(own.backward(a.saved).gpe), sum = doubles_of(unified.backward(b.saved).gpe);
    for (size_t d = 0; d < 3; ++d)
      for (size_t r = 0; r < 2; ++r)
        EXPECT_NEAR(sum[d * 2 + r], each[d * 6 + r] + each[d * 6 + 2 + r] + each[d * 6 + 4 + r], 1e-4);
  }
}

// Positions go through the cache in steps of different sizes, two slots interleaved, past the ring's end.
TEST(LutPaths, DecodeSeesTheLastPositionsOfItsSlot) {
  for (const int64_t npe : {0, 2})
    for (const bool sparse : {false, true}) {
      LutCase c(sequence_layer(6, 4, 2, npe, 35, 5), 2, 60);
      if (sparse)
        make_sparse(
            c, [](int64_t row, int64_t o) { return (row + o) % 2 == 0; }, true);
      const int64_t total = 13, window = 4;
      const Tensor x = random_normal({2, total, 6}, 61);
      auto cache = lut::make_cache(*c.layer, 3, 4);
      std::vector<std::vector<float>> got(2);
      const int64_t steps[2][5] = {{4, 1, 3, 2, 3}, {1, 2, 1, 4, 5}};
      int64_t done[2] = {};
      for (int step = 0; step < 5; ++step) {
        for (int s = 0; s < 2; ++s) {
          const int64_t count = std::min<int64_t>(steps[s][step], 4);
          std::vector<float> rows;
          std::vector<int32_t> slots, positions;
          for (int64_t i = 0; i < count; ++i, ++done[s]) {
            const float* row = x.data_as<float>() + (s * total + done[s]) * 6;
            rows.insert(rows.end(), row, row + 6);
            slots.push_back(s ? 2 : 0);
            positions.push_back(static_cast<int32_t>(done[s]));
          }
          const Tensor y =
              lut::decode(*c.layer, c.weights(), device_tensor<float>({count, 6}, rows), c.embeddings(),
                          host_i32({count}, slots), host_i32({count}, positions), cache, *c.work);
          const auto values = values_of<float>(y);
          got[static_cast<size_t>(s)].insert(got[static_cast<size_t>(s)].end(), values.begin(), values.end());
        }
      }
      // Oracle loop: the last position of each window of S positions, through the whole-sequence forward.
      for (int s = 0; s < 2; ++s)
        for (int64_t j = 0; j < done[s]; ++j) {
          const int64_t first = std::max<int64_t>(0, j - window), count = j - first + 1;
          LutCase one = c;
          one.batch = 1;
          one.x = host_tensor<float>({1, count, 6}, std::span(x.data_as<float>() + (s * total + first) * 6,
                                                              static_cast<size_t>(count * 6)));
          const auto y = values_of<float>(one.forward(false).y);
          expect_same_bits(std::span(got[static_cast<size_t>(s)]).subspan(static_cast<size_t>(j * 35), 35),
                           std::span(y).subspan(static_cast<size_t>((count - 1) * 35), 35),
                           concat("slot ", s, " position ", j));
        }
    }
}

}  // namespace
}  // namespace trivium::testing
