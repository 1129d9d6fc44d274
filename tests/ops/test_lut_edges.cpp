// Edges of LUT layers (lut.md 11.4) and properties of sequences.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

lut::Saved detect(const std::vector<float>& x, const std::vector<int32_t>& anchors, float cmp_eps = 0) {
  const auto inputs = static_cast<int64_t>(x.size()), pairs = static_cast<int64_t>(anchors.size()) / 2;
  lut::LayerOptions o;
  o.inputs = inputs;
  o.outputs = 1;
  o.cmp_eps = cmp_eps;
  o.anchors = host_i32({1, pairs, 2}, anchors);
  const lut::Layer layer(o, test_device());
  lut::Workspace work(test_device());
  // Five equal rows: both the row-by-row and the vector code of the CPU see them.
  std::vector<float> rows;
  for (int i = 0; i < 5; ++i) rows.insert(rows.end(), x.begin(), x.end());
  const Tensor w = Tensor::zeros(layer.weight_shape(), Dtype::f32, test_device());
  auto saved = lut::forward(layer, w, device_tensor<float>({5, inputs}, rows), {}, true, work).saved;
  const auto index = values_of<int32_t>(saved.index), r = values_of<int32_t>(saved.min_index);
  const auto one = lut::forward(layer, w, device_tensor<float>({1, inputs}, x), {}, true, work).saved;
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(index[i], values_of<int32_t>(one.index)[0]);
    EXPECT_EQ(r[i], values_of<int32_t>(one.min_index)[0]);
  }
  return one;
}

void expect_detection(const lut::Saved& s, int32_t index, int32_t min_index, float min_delta) {
  EXPECT_EQ(values_of<int32_t>(s.index)[0], index);
  EXPECT_EQ(values_of<int32_t>(s.min_index)[0], min_index);
  EXPECT_EQ(values_of<float>(s.min_delta)[0], min_delta);
}

TEST(LutEdges, TiesGiveZeroBitsAndTheLowestPairWins) {
  expect_detection(detect({1, 1, 3}, {0, 1, 2, 1, 1, 0}), 0b010, 0, 0);
  expect_detection(detect({0.0f, -0.0f}, {0, 1, 1, 0}), 0, 0, 0);
  expect_detection(detect({2, 2, 2}, {0, 1, 1, 2, 2, 0}), 0, 0, 0);
  expect_detection(detect({1, 0, 2}, {2, 0, 0, 1}), 0b11, 0, 1);  // equal magnitudes
}

TEST(LutEdges, UnusedPairsAreNeverTheLeastCertain) {
  expect_detection(detect({5, 1}, {-1, -1, -1, -1}), 0, -1, 0);
  expect_detection(detect({5, 1}, {-1, 0, 0, 1}), 0b10, 1, 4);
  expect_detection(detect({5, 1}, {0, -1, 1, 0}), 0, 1, -4);
}

TEST(LutEdges, NonFiniteInputs) {
  expect_detection(detect({NAN, 1, 3}, {0, 1, 2, 1}), 0b10, 1, 2);
  expect_detection(detect({NAN, 1}, {0, 1, 1, 0}), 0, -1, 0);
  expect_detection(detect({INFINITY, INFINITY, 1}, {0, 1, 0, 2}), 0b10, 1, INFINITY);
  expect_detection(detect({INFINITY, 1, 0}, {0, 1, 1, 2}), 0b11, 1, 1);
  expect_detection(detect({-INFINITY, 1}, {0, 1}), 0, 0, -INFINITY);
}

TEST(LutEdges, DenormalDifferencesCount) {
  const float tiny = 0x1p-149f;
  expect_detection(detect({tiny, 0, 1}, {0, 1, 2, 1}), 0b11, 0, tiny);
  expect_detection(detect({0x1.000002p-126f, 0x1p-126f}, {0, 1, 1, 0}), 0b01, 0, tiny);
}

TEST(LutEdges, SmallDifferencesBelowTheThresholdGiveZeroBits) {
  expect_detection(detect({0.25f, 0, 2}, {0, 1, 2, 1}, 0.5f), 0b10, 0, 0.25f);
  expect_detection(detect({0.5f, 0}, {0, 1, 1, 0}, 0.5f), 0b01, 0, 0.5f);
  // The slope's sign follows the bit, which is 0 although the difference is positive.
  lut::LayerOptions o;
  o.inputs = 2;
  o.outputs = 1;
  o.cmp_eps = 0.5f;
  o.anchors = host_i32({1, 1, 2}, {0, 1});
  LutCase c(o, 1, 1);
  c.x = host_tensor<float>({1, 2}, std::vector<float>{0.25f, 0});
  c.w = host_tensor<float>({1, 2, 1}, std::vector<float>{1, 3});
  c.gy = host_tensor<float>({1, 1}, std::vector<float>{1});
  const auto gx = values_of<float>(c.backward(c.forward().saved).gx);
  EXPECT_FLOAT_EQ(gx[0], 1 / (1.25f * 1.25f));
  EXPECT_EQ(gx[1], -gx[0]);
}

TEST(LutEdges, DuplicateAndReversedPairs) {
  expect_detection(detect({3, 1}, {0, 1, 0, 1, 1, 0}), 0b011, 0, 2);
  LutCase c(rows_layer(2, 1, 3, 4), 1, 1);
  c.options.anchors = host_i32({1, 3, 2}, {0, 1, 0, 1, 0, 1});
  c.rebuild();
  const auto gradients = c.backward(c.forward().saved);  // the alternative cell cannot be reached: used as is
  EXPECT_NE(inner(gradients.gx, gradients.gx), 0);
}

TEST(LutEdges, OddSizesMatchTheFormula) {
  for (const int64_t outputs : {1, 3, 10, 31, 32, 33, 257})
    for (const int64_t tables : {1, 31, 33})
      for (const int64_t batch : {1, 5, 19}) {
        const LutCase c(rows_layer(6, tables, 2, outputs), batch, 1, true);
        const auto forward = c.forward();
        const auto index = values_of<int32_t>(forward.saved.index);
        std::vector<double> y(static_cast<size_t>(batch * outputs));
        std::vector<double> gw(static_cast<size_t>(c.w.numel()));
        for (int64_t b = 0; b < batch; ++b)
          for (int64_t t = 0; t < tables; ++t)
            for (int64_t o = 0; o < outputs; ++o) {
              const auto at = (t * 4 + index[static_cast<size_t>(b * tables + t)]) * outputs + o;
              y[static_cast<size_t>(b * outputs + o)] += c.w.data_as<float>()[at];
              gw[static_cast<size_t>(at)] += c.gy.data_as<float>()[b * outputs + o];
            }
        ASSERT_EQ(doubles_of(forward.y), y) << outputs << ' ' << tables << ' ' << batch;
        ASSERT_EQ(doubles_of(c.backward(forward.saved).gw), gw) << outputs << ' ' << tables << ' ' << batch;
      }
}

TEST(LutEdges, AnEmptyBatchHasEmptyResults) {
  for (const bool sequence : {false, true}) {
    const LutCase c(sequence ? sequence_layer(6, 3, 2, 2, 5, 4) : rows_layer(6, 3, 2, 5), 0, 1);
    const auto forward = c.forward();
    EXPECT_EQ(forward.y.numel(), 0);
    const auto gradients = c.backward(forward.saved);
    EXPECT_EQ(gradients.gx.numel(), 0);
    EXPECT_EQ(gradients.gw.shape(), c.w.shape());
    EXPECT_EQ(inner(gradients.gw, gradients.gw), 0);
  }
}

TEST(LutEdges, ManySamples) {
  LutCase c(rows_layer(2, 1, 1, 1), 70000, 1, true);
  const auto forward = c.forward();
  const auto index = values_of<int32_t>(forward.saved.index);
  const auto y = values_of<float>(forward.y);
  double gw[2] = {};
  for (size_t b = 0; b < index.size(); ++b) {
    ASSERT_EQ(y[b], c.w.data_as<float>()[index[b]]) << b;
    gw[index[b]] += c.gy.data_as<float>()[b];
  }
  EXPECT_EQ(doubles_of(c.backward(forward.saved).gw), (std::vector<double>{gw[0], gw[1]}));
}

TEST(LutEdges, NanGradientsReachTheInputs) {
  LutCase c(rows_layer(6, 3, 2, 5), 3, 1);
  c.gy.data_as<float>()[7] = NAN;
  const auto gradients = c.backward(c.forward().saved);
  const auto gx = values_of<float>(gradients.gx), gw = values_of<float>(gradients.gw);
  EXPECT_TRUE(std::any_of(gx.begin() + 6, gx.begin() + 12, [](float v) { return std::isnan(v); }));
  EXPECT_FALSE(std::any_of(gx.begin(), gx.begin() + 6, [](float v) { return std::isnan(v); }));
  EXPECT_TRUE(std::any_of(gw.begin(), gw.end(), [](float v) { return std::isnan(v); }));
}

TEST(LutEdges, TinyGradientsAreDropped) {
  LutCase c(rows_layer(6, 3, 2, 5), 3, 1);
  for (int64_t i = 0; i < c.gy.numel(); ++i) c.gy.data_as<float>()[i] = 1e-17f;
  const auto gradients = c.backward(c.forward().saved);
  EXPECT_EQ(inner(gradients.gw, gradients.gw), 0);
}

TEST(LutEdges, RowsWithoutSynapses) {
  LutCase c(rows_layer(6, 3, 2, 5), 3, 1);
  make_sparse(
      c, [](int64_t row, int64_t) { return row == 5; }, false);  // an alternative without its main row
  const auto forward = c.forward();
  const auto gradients = c.backward(forward.saved);
  EXPECT_EQ(gradients.gw.numel(), 5);
  make_sparse(
      c, [](int64_t, int64_t) { return false; }, true);
  EXPECT_EQ(inner(c.forward().y, c.forward().y), 0);
}

// y and gx of one detector on x = (2, 1.5), u = 0.5: cell 1 is addressed, cell 0 the alternative.
void expect_one_detector(const std::vector<float>& main, const std::vector<float>& other) {
  lut::LayerOptions o;
  o.inputs = o.outputs = 2;
  o.anchors = host_i32({1, 1, 2}, {0, 1});
  std::vector<int32_t> targets;
  std::vector<float> weights;
  std::vector<int64_t> pointers{0};
  for (const auto* row : {&other, &main}) {
    for (size_t k = 0; k < row->size(); ++k) targets.push_back(static_cast<int32_t>(k));
    weights.insert(weights.end(), row->begin(), row->end());
    pointers.push_back(static_cast<int64_t>(weights.size()));
  }
  const auto count = static_cast<int64_t>(weights.size());
  LutCase c(o, 1, 1);
  c.options.pointers = host_tensor<int64_t>({3}, pointers);
  c.options.targets = host_i32({count}, targets);
  c.rebuild();
  c.x = host_tensor<float>({1, 2}, std::vector<float>{2, 1.5f});
  c.gy = host_tensor<float>({1, 2}, std::vector<float>{1, 3});
  c.w = host_tensor<float>({count}, weights);
  const auto forward = c.forward();
  const auto at = [](const std::vector<float>& row, size_t k) { return k < row.size() ? row[k] : 0; };
  EXPECT_EQ(values_of<float>(forward.y), (std::vector<float>{at(main, 0), at(main, 1)}));
  const auto g = c.backward(forward.saved);
  const float dot = at(main, 0) - at(other, 0) + 3 * (at(main, 1) - at(other, 1));
  EXPECT_FLOAT_EQ(values_of<float>(g.gx)[0], 0.5f / 2.25f * dot);
  std::vector<float> gw(weights.size());
  for (size_t k = 0; k < main.size(); ++k) gw[other.size() + k] = k ? 3 : 1;
  EXPECT_EQ(values_of<float>(g.gw), gw);
}

TEST(LutEdges, AnAddressedRowMayHaveSynapsesWhereTheAlternativeHasNone) {
  expect_one_detector({5, 7}, {});
  expect_one_detector({}, {5, 7});
  expect_one_detector({5}, {4, 7});
}

TEST(LutSequence, EmbeddingsFollowTheRuleOfDetectors) {
  LutCase c(sequence_layer(5, 1, 1, 3, 2, 8), 1, 1);
  const float tiny = 0x1p-149f;
  c.pe =
      host_tensor<float>({7, 1, 3}, std::vector<float>{0.0f, -0.0f, 1,   -2,    2,        2,        NAN, -1,
                                                       3,    NAN,   NAN, NAN,   INFINITY, 4,        -4,  //
                                                       tiny, 1,     0,   -tiny, tiny,     -INFINITY});
  const auto s = c.forward().saved;
  EXPECT_EQ(values_of<int32_t>(s.pe_index), (std::vector<int32_t>{4, 6, 4, 0, 3, 3, 2}));
  EXPECT_EQ(values_of<int32_t>(s.pe_min_index), (std::vector<int32_t>{0, 0, 1, -1, 1, 2, 0}));
  const auto u = values_of<float>(s.pe_min_delta);
  EXPECT_EQ(u, (std::vector<float>{0, -2, -1, 0, 4, 0, -tiny}));
}

TEST(LutSequence, OddLengthsMatchTheFormula) {
  for (const int64_t length : {2, 3, 31, 32, 33, 65})
    for (const int64_t npe : {0, 1, 5}) {
      const LutCase c(sequence_layer(4, 2, 1, npe, 3, length), 1, 1, true);
      const auto s = c.forward();
      const auto index = values_of<int32_t>(s.saved.index);
      const auto pe = npe ? values_of<int32_t>(s.saved.pe_index) : std::vector<int32_t>{};
      std::vector<double> y(static_cast<size_t>(length * 3)), gw(static_cast<size_t>(c.w.numel()));
      for (int64_t j = 0; j < length; ++j)
        for (int64_t i = 0; i < j; ++i)
          for (int64_t t = 0; t < 2; ++t) {
            const int64_t e = npe ? pe[static_cast<size_t>((j - i - 1) * 2 + t)] : 0;
            const int64_t q = index[static_cast<size_t>(j * 2 + t)],
                          k = index[static_cast<size_t>(i * 2 + t)];
            const int64_t row = t * c.layer->cells() + (q << (1 + npe) | k << npe | e);
            for (int64_t o = 0; o < 3; ++o) {
              y[static_cast<size_t>(j * 3 + o)] += c.w.data_as<float>()[row * 3 + o];
              gw[static_cast<size_t>(row * 3 + o)] += c.gy.data_as<float>()[j * 3 + o];
            }
          }
      ASSERT_EQ(doubles_of(s.y), y) << length << ' ' << npe;
      ASSERT_EQ(doubles_of(c.backward(s.saved).gw), gw) << length << ' ' << npe;
    }
}

TEST(LutSequence, APositionSeesOnlyItsPast) {
  for (const bool product : {false, true}) {
    LutCase c(product ? product_layer(5, 4, 3, 2, 6, 7, false) : sequence_layer(5, 4, 2, 2, 6, 7), 2, 1);
    const auto before = values_of<float>(c.forward(false).y);
    for (size_t o = 0; o < 6; ++o) EXPECT_EQ(before[o], 0) << "position 0 has no predecessor";
    for (int64_t i = 3 * 5; i < 7 * 5; ++i) c.x.data_as<float>()[i] = -c.x.data_as<float>()[i];
    const auto after = values_of<float>(c.forward(false).y);
    expect_same_bits(std::span(after).first(18), std::span(before).first(18), "positions before the change");
    expect_same_bits(std::span(after).subspan(42), std::span(before).subspan(42), "the other sequence");
    EXPECT_NE(std::vector<float>(after.begin() + 18, after.begin() + 42),
              std::vector<float>(before.begin() + 18, before.begin() + 42));
  }
}

TEST(LutSequence, APositionCountsForItselfAndForEveryLaterOne) {
  LutCase c(sequence_layer(5, 4, 2, 2, 6, 7), 1, 1);
  const auto before = values_of<float>(c.forward(false).y);
  for (int64_t i = 0; i < 5; ++i) c.x.data_as<float>()[3 * 5 + i] *= -1;  // of position 3: all bits change
  const auto after = values_of<float>(c.forward(false).y);
  for (size_t j = 0; j < 7; ++j) {
    const auto row = [&](const std::vector<float>& y) { return std::span(y).subspan(j * 6, 6); };
    const bool same = std::ranges::equal(row(after), row(before));
    EXPECT_EQ(same, j < 3) << "position " << j;
  }
}

TEST(LutSequence, GradientsOfPositionZerosOutputGoNowhere) {
  LutCase c(sequence_layer(5, 4, 2, 2, 6, 5), 1, 1);
  const auto forward = c.forward();
  const auto before = c.backward(forward.saved);
  for (int64_t o = 0; o < 6; ++o) c.gy.data_as<float>()[o] = 100;
  const auto after = c.backward(forward.saved);
  expect_same(after.gx, before.gx, "gx");
  expect_same(after.gw, before.gw, "gw");
  expect_same(after.gpe, before.gpe, "gpe");
}

TEST(LutSequence, ShorterSequencesUseTheNearestEmbeddings) {
  LutCase c(sequence_layer(5, 4, 2, 2, 6, 7), 2, 1);
  LutCase shorter = c;
  shorter.length = 3;
  shorter.x = Tensor::empty({2, 3, 5}, Dtype::f32);
  shorter.gy = random_normal({2, 3, 6}, 9);
  for (int64_t b = 0; b < 2; ++b)
    std::copy_n(c.x.data_as<float>() + b * 35, 15, shorter.x.data_as<float>() + b * 15);
  const auto full = values_of<float>(c.forward(false).y);
  const auto forward = shorter.forward();
  const auto y = values_of<float>(forward.y);
  for (size_t b = 0; b < 2; ++b)
    expect_same_bits(std::span(y).subspan(b * 18, 18), std::span(full).subspan(b * 42, 18), "y");
  const auto gpe = doubles_of(shorter.backward(forward.saved).gpe);
  for (size_t i = 2 * 8; i < gpe.size(); ++i) EXPECT_EQ(gpe[i], 0) << "embedding " << i << " was not used";
  shorter.x = Tensor::zeros({2, 1, 5}, Dtype::f32);
  shorter.gy = Tensor::zeros({2, 1, 6}, Dtype::f32);
  const auto one = shorter.forward();
  EXPECT_EQ(inner(one.y, one.y), 0);
  EXPECT_EQ(shorter.backward(one.saved).gx.numel(), 10);
}

TEST(LutSequence, TiesFlipTheEarlierPositionAndNoEmbedding) {
  // One pair of positions with |uQ| = |uK| = |uE| = 1.
  lut::LayerOptions o;
  o.inputs = 2;
  o.outputs = 1;
  o.mode = lut::Mode::sequence;
  o.sequence_length = 2;
  o.positional_dim = 1;
  o.anchors = host_i32({1, 1, 2}, {0, 1});
  LutCase c(o, 1, 1);
  c.x = host_tensor<float>({1, 2, 2}, std::vector<float>{1, 0, 2, 1});
  c.pe = host_tensor<float>({1, 1, 1}, std::vector<float>{1});
  c.gy = host_tensor<float>({1, 2, 1}, std::vector<float>{0, 1});
  // Cells: later << 2 | earlier << 1 | embedding.
  c.w = host_tensor<float>({1, 8, 1}, std::vector<float>{0, 0, 0, 0, 0, 10, 0, 30});
  const auto g = c.backward(c.forward().saved);
  EXPECT_EQ(values_of<float>(g.gx), (std::vector<float>{0.125f * 20, -0.125f * 20, 0, 0}));
  EXPECT_EQ(values_of<float>(g.gpe), (std::vector<float>{0}));
}

TEST(LutSequence, RepeatedSequencesDoubleTheSharedGradients) {
  LutCase c(sequence_layer(5, 4, 2, 2, 6, 5), 1, 1, true);
  const auto single = c.backward(c.forward().saved);
  LutCase twice = c;
  twice.batch = 2;
  for (Tensor* t : {&twice.x, &twice.gy}) {
    const Tensor one = *t;
    *t = Tensor::empty({2, one.dim(1), one.dim(2)}, Dtype::f32);
    std::copy_n(one.data_as<float>(), one.numel(), t->data_as<float>());
    std::copy_n(one.data_as<float>(), one.numel(), t->data_as<float>() + one.numel());
  }
  const auto both = twice.backward(twice.forward().saved);
  for (const auto& [a, b] : {std::pair{doubles_of(single.gw), doubles_of(both.gw)},
                             std::pair{doubles_of(single.gpe), doubles_of(both.gpe)}})
    for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(b[i], 2 * a[i]);
}

TEST(LutSequence, UnusableDetectorsLeaveTheEmbeddingItsGradient) {
  LutCase c(sequence_layer(5, 1, 2, 2, 6, 4), 1, 1);
  c.options.anchors = host_i32({1, 2, 2}, {-1, -1, -1, -1});
  c.rebuild();
  const auto g = c.backward(c.forward().saved);
  EXPECT_EQ(inner(g.gx, g.gx), 0);
  EXPECT_NE(inner(g.gpe, g.gpe), 0);
}

}  // namespace
}  // namespace trivium::testing
