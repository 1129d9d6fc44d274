// Every bad argument of a LUT layer is one sentence that names it (lut.md 11.5).
#include "core/log.h"
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

template <class Change>
void expect_layer_error(lut::LayerOptions o, const Change& change, const std::vector<std::string>& parts) {
  change(o);
  expect_error([&] { lut::Layer(o, test_device()); }, parts);
}

TEST(LutErrors, Sizes) {
  const auto rows = rows_layer(5, 3, 2, 4);
  const auto sequence = sequence_layer(5, 3, 2, 2, 4, 6);
  expect_layer_error(rows, [](auto& o) { o.inputs = 0; }, {"inputs is 0"});
  expect_layer_error(rows, [](auto& o) { o.outputs = 0; }, {"outputs is 0"});
  expect_layer_error(rows, [](auto& o) { o.outputs = -3; }, {"outputs is -3"});
  expect_layer_error(rows,
                     [](auto& o) {
                       o.anchors = Tensor::empty({0, 2, 2}, Dtype::i32);
                     },
                     {"anchors are [0, 2, 2]"});
  expect_layer_error(rows,
                     [](auto& o) {
                       o.anchors = Tensor::empty({3, 0, 2}, Dtype::i32);
                     },
                     {"anchors are [3, 0, 2]"});
  expect_layer_error(rows, [](auto& o) { o.anchors = Tensor::zeros({3, 2, 3}, Dtype::i32); }, {"[3, 2, 3]"});
  expect_layer_error(rows,
                     [](auto& o) {
                       o.anchors = Tensor::zeros({3, 2, 2}, Dtype::i64);
                     },
                     {"int64", "int32"});
  expect_layer_error(sequence, [](auto& o) { o.sequence_length = 0; }, {"sequence_length is 0"});
  expect_layer_error(sequence, [](auto& o) { o.positional_dim = -1; }, {"positional_dim is -1"});
  expect_layer_error(rows, [](auto& o) { o.positional_dim = 2; }, {"positional_dim 2", "mode rows"});
  expect_layer_error(rows, [](auto& o) { o.sequence_length = 4; }, {"sequence_length is 4", "mode rows"});
  expect_layer_error(sequence, [](auto& o) { o.positional_dim = 27; }, {"31 bits", "at most 30"});
  expect_layer_error(rows, [](auto& o) { o.anchors = Tensor::zeros({1, 31, 2}, Dtype::i32); }, {"31 bits"});
  expect_layer_error(rows,
                     [](auto& o) {
                       o.anchors = Tensor::zeros({4, 30, 2}, Dtype::i32);
                     },
                     {"4 tables of 1073741824 cells", "2^32"});
  expect_layer_error(product_layer(3, 2, 2, 2, 4, 5, false), [](auto& o) { o.sequence_length = 1; },
                     {"sequence_length is 1", "mode product"});
  expect_layer_error(product_layer(3, 2, 2, 3, 4, 5, true), [](auto& o) { o.sequence_length = 1; },
                     {"sequence_length is 1", "mode sliced"});
  expect_layer_error(product_layer(3, 2, 2, 3, 4, 5, true), [](auto& o) { o.positional_dim = 2; },
                     {"positional_dim is 2", "inputs (3)", "sliced"});
  expect_layer_error(sequence_layer(5, 3, 2, 0, 4, 6), [](auto& o) { o.unified_pe = true; }, {"unified_pe"});
}

TEST(LutErrors, Values) {
  const auto rows = rows_layer(5, 3, 2, 4);
  const auto set = [](lut::LayerOptions& o, int32_t v) {
    o.anchors = o.anchors.to(Device{});
    o.anchors.data_as<int32_t>()[9] = v;
  };
  expect_layer_error(rows, [&](auto& o) { set(o, 5); }, {"anchors hold 5 in table 2", "less than 5"});
  for (const float bad : {-0.5f, 1.5f, NAN})
    expect_layer_error(rows_layer(5, 3, 2, 4), [&](auto& o) { o.learning_rate = bad; }, {"learning_rate"});
  for (const float bad : {-1.0f, INFINITY, NAN})
    expect_layer_error(rows_layer(5, 3, 2, 4), [&](auto& o) { o.cmp_eps = bad; }, {"cmp_eps"});
  for (const double bad : {-1.0, static_cast<double>(INFINITY), static_cast<double>(NAN)})
    expect_layer_error(rows_layer(5, 3, 2, 4), [&](auto& o) { o.int_rescaler = bad; }, {"int_rescaler"});
  expect_layer_error(rows_layer(5, 3, 2, 4), [](auto& o) { o.int_rescaler = 0.001, o.learning_rate = 1e-4f; },
                     {"learning_rate 0.0001", "quantum"});
  expect_layer_error(rows_layer(5, 3, 2, 4), [](auto& o) { o.group_size = 0; }, {"group_size is 0"});
}

TEST(LutErrors, SparseStructure) {
  const auto base = rows_layer(5, 2, 1, 4);
  const auto sparse = [&](std::vector<int64_t> pointers, std::vector<int32_t> targets) {
    return [=](lut::LayerOptions& o) {
      o.pointers = host_tensor<int64_t>({static_cast<int64_t>(pointers.size())}, pointers);
      o.targets = host_i32({static_cast<int64_t>(targets.size())}, targets);
    };
  };
  expect_layer_error(base, sparse({0, 2, 1, 2, 3}, {0, 1, 2}), {"pointers[2] is 1 after 2"});
  expect_layer_error(base, sparse({0, 1, 2, 2, 2}, {0, 1, 2}), {"pointers run from 0 to 2", "0 to 3"});
  expect_layer_error(base, sparse({1, 1, 2, 2, 3}, {0, 1, 2}), {"pointers run from 1"});
  expect_layer_error(base, sparse({0, 9, 3}, {0, 1, 2}), {"pointers[1] is 9"});
  expect_layer_error(base, sparse({0, 1, 3}, {0, 1, 4}), {"targets[2] is 4", "0 to 3"});
  expect_layer_error(base, sparse({0, 1, 3}, {0, -1, 1}), {"targets[1] is -1"});
  expect_layer_error(base, sparse({0, 1, 3}, {0, 2, 1}), {"targets[2] is 1 after 2"});
  expect_layer_error(base, sparse({0, 1, 2, 3}, {0, 1, 2}), {"pointers are [4]", "[3]", "[5]"});
  expect_layer_error(base, [](auto& o) { o.rates = Tensor::zeros({7}, Dtype::f32); },
                     {"rates are [7]", "16"});
  expect_layer_error(base,
                     [](auto& o) {
                       o.rates = Tensor::zeros({16}, Dtype::f32);
                       o.rates.template data_as<float>()[3] = 2;
                     },
                     {"rates[3] is 2"});
  expect_layer_error(base,
                     [](auto& o) {
                       o.rates = Tensor::zeros({16}, Dtype::f32);
                       o.rates.template data_as<float>()[3] = 1e-4f;
                       o.int_rescaler = 0.001;
                     },
                     {"rates 0.0001", "quantum"});
}

std::vector<std::string> g_warnings;

TEST(LutErrors, APairOfEqualInputsIsAWarningAlone) {
  lut::LayerOptions o = rows_layer(5, 3, 2, 4);
  g_warnings.clear();
  set_log_sink([](LogLevel level, const char* message) {
    if (level == LogLevel::warning) g_warnings.push_back(message);
  });
  lut::Layer(o, test_device());
  EXPECT_TRUE(g_warnings.empty());
  o.anchors.data_as<int32_t>()[6] = o.anchors.data_as<int32_t>()[7] = 4;
  LutCase c(o, 3, 1);
  set_log_sink(nullptr);
  ASSERT_EQ(g_warnings.size(), 1u);
  EXPECT_NE(g_warnings[0].find("1 anchor pairs compare an input with itself"), std::string::npos)
      << g_warnings[0];
  const auto index = values_of<int32_t>(c.forward().saved.index);
  for (size_t b = 0; b < 3; ++b) EXPECT_EQ(index[3 * b + 1] & 2, 0) << "the bit of a difference of zero";
}

TEST(LutErrors, ForwardArguments) {
  const LutCase c(sequence_layer(5, 3, 2, 2, 4, 6), 2, 1);
  const Device device = test_device();
  const Tensor w = c.weights(), x = c.x.to(device), pe = c.embeddings();
  const auto call = [&](const Tensor& weights, const Tensor& input, const Tensor& embedding) {
    return [&] { lut::forward(*c.layer, weights, input, embedding, true, *c.work); };
  };
  const Tensor bad_w = Tensor::zeros({3, 64, 5}, Dtype::f32, device), f64 = c.x.to(Dtype::f64).to(device);
  const Tensor narrow = Tensor::zeros({2, 6, 4}, Dtype::f32, device);
  const Tensor flat = Tensor::zeros({12, 5}, Dtype::f32, device);
  const Tensor long_x = Tensor::zeros({2, 7, 5}, Dtype::f32, device);
  const Tensor empty_x = Tensor::zeros({2, 0, 5}, Dtype::f32, device);
  const Tensor bad_pe = Tensor::zeros({6, 3, 2}, Dtype::f32, device), none;
  expect_error(call(bad_w, x, pe), {"weights are [3, 64, 5]", "[3, 64, 4]"});
  expect_error(call(none, x, pe), {"weight is missing"});
  expect_error(call(w, f64, pe), {"x is float64", "float32"});
  expect_error(call(w, narrow, pe), {"x is [2, 6, 4]", "5]"});
  expect_error(call(w, flat, pe), {"x is [12, 5]"});
  expect_error(call(w, long_x, pe), {"x is [2, 7, 5]", "1 to 6"});
  expect_error(call(w, empty_x, pe), {"x is [2, 0, 5]"});
  expect_error(call(w, x, bad_pe), {"pe is [6, 3, 2]", "[5, 3, 2]"});
  expect_error(call(w, x, none), {"pe is missing", "positional_dim is 2"});
  const LutCase rows(rows_layer(5, 3, 2, 4), 2, 1);
  expect_error([&] { lut::forward(*rows.layer, rows.weights(), rows.x.to(device), pe, true, *rows.work); },
               {"pe is [5, 3, 2]", "positional_dim is 0"});
  const Tensor index = host_i32({1, 3}, {0, 4, 1}).to(device);
  expect_error([&] { lut::fill_outputs(*rows.layer, rows.weights(), index, *rows.work); },
               {"index holds 4", "0 to 3"});
  expect_error([&] { lut::fill_outputs(*c.layer, w, index, *c.work); }, {"mode is sequence"});
}

TEST(LutErrors, BackwardArguments) {
  LutCase c(rows_layer(5, 3, 2, 4), 2, 1);
  const auto trained = c.forward(true), evaluated = c.forward(false);
  using Policy = lut::WeightPolicy;
  expect_error([&] { c.backward(evaluated.saved); }, {"nothing was saved"});
  for (const float eta : {-1.0f, NAN, INFINITY})
    expect_error([&] { c.backward(trained.saved, {.policy = Policy::internal, .eta = eta}); }, {"eta is"});
  expect_error([&] { c.backward(trained.saved, {.policy = Policy::internal, .normalized = true}); },
               {"normalized", "internal"});
  const Tensor gw = Tensor::zeros({3, 4, 5}, Dtype::f32, test_device());
  expect_error([&] { c.backward(trained.saved, {.gw = gw}); }, {"gw is [3, 4, 5]", "[3, 4, 4]"});
  expect_error([&] { c.backward(trained.saved, {.policy = Policy::rows, .gw = gw}); }, {"dense policy"});
  const Tensor gy = c.gy;
  c.gy = Tensor::zeros({2, 3}, Dtype::f32);
  expect_error([&] { c.backward(trained.saved); }, {"gy is [2, 3]", "[2, 4]"});
  c.gy = gy;
  c.options.int_rescaler = 1;
  c.rebuild();
  expect_error([&] { c.backward(trained.saved, {.policy = Policy::internal, .eta = 1}); }, {"fixed-point"});
  expect_error([&] { c.backward(trained.saved, {}, true); }, {"staged", "float mode"});
  expect_error([&] { c.forward(true, true); }, {"staged", "float mode"});
}

TEST(LutErrors, TensorsThatDoNotLieInOrderAreRefused) {
  LutCase c(rows_layer(5, 3, 2, 4), 2, 1);
  const auto forward = c.forward();
  const Device device = test_device();
  const auto strided = [&](const Shape& shape) {
    const Tensor twice = Tensor::zeros({2 * shape.numel()}, Dtype::f32, device);
    std::vector<int64_t> strides(static_cast<size_t>(shape.rank()), 2);
    for (int i = shape.rank() - 2; i >= 0; --i)
      strides[static_cast<size_t>(i)] = strides[static_cast<size_t>(i + 1)] * shape[i + 1];
    return Tensor::wrap(twice.data(), shape, Dtype::f32, device, twice.owner(), strides);
  };
  const Tensor gw = strided({3, 4, 4}), x = strided({2, 5}), w = strided({3, 4, 4});
  expect_error([&] { c.backward(forward.saved, {.gw = gw}); }, {"gw", "contiguous"});
  expect_error([&] { lut::forward(*c.layer, c.weights(), x, {}, true, *c.work); }, {"x", "contiguous"});
  expect_error([&] { lut::forward(*c.layer, w, c.x.to(device), {}, true, *c.work); },
               {"weight", "contiguous"});
}

TEST(LutErrors, TensorsOfAnotherDeviceAreRefused) {
  if (test_device() == Device{}) GTEST_SKIP() << "the cpu is the only device here";
  LutCase c(sequence_layer(5, 3, 2, 2, 4, 6), 2, 1);
  const auto saved = c.forward().saved;
  const Device device = test_device();
  const Tensor w = c.weights(), x = c.x.to(device), pe = c.embeddings(), gy = c.gy.to(device);
  const auto forward = [&](const Tensor& weights, const Tensor& input, const Tensor& embedding) {
    return [&] { lut::forward(*c.layer, weights, input, embedding, true, *c.work); };
  };
  expect_error(forward(c.w, x, pe), {"weight is on cpu"});
  expect_error(forward(w, c.x, pe), {"x is on cpu"});
  expect_error(forward(w, x, c.pe), {"pe is on cpu"});
  const Tensor gw = Tensor::zeros(c.w.shape(), Dtype::f32);
  expect_error([&] { lut::backward(*c.layer, w, c.gy, saved, {}, *c.work); }, {"gy is on cpu"});
  expect_error([&] { lut::backward(*c.layer, w, gy, saved, {.gw = gw}, *c.work); }, {"gw is on cpu"});
  auto moved = saved;
  moved.min_delta = saved.min_delta.to(Device{});
  expect_error([&] { c.backward(moved); }, {"a saved tensor is", "on cpu"});
  lut::Workspace work{Device{}};
  expect_error([&] { lut::forward(*c.layer, w, x, pe, true, work); }, {"the workspace is on cpu"});
  expect_error([&] { lut::backward(*c.layer, w, gy, saved, {}, work); }, {"the workspace is on cpu"});
}

TEST(LutErrors, NothingIsWrittenWhereACallIsRefused) {
  const LutCase c(rows_layer(5, 3, 2, 4), 2, 1);
  const auto saved = c.forward().saved;
  const Tensor w = c.weights(), short_gy = Tensor::zeros({2, 3}, Dtype::f32, test_device());
  const auto before = values_of<float>(w);
  using Policy = lut::WeightPolicy;
  for (const lut::BackwardOptions& o :
       {lut::BackwardOptions{.policy = Policy::internal, .eta = NAN},
        lut::BackwardOptions{.policy = Policy::internal, .normalized = true, .eta = 1}})
    expect_error([&] { lut::backward(*c.layer, w, c.gy.to(test_device()), saved, o, *c.work); },
                 {"lut backward"});
  expect_error(
      [&] { lut::backward(*c.layer, w, short_gy, saved, {.policy = Policy::internal, .eta = 1}, *c.work); },
      {"gy is [2, 3]"});
  expect_same_bits(values_of<float>(w), before, "weights");
  Guarded gw(c.w.shape(), Dtype::f32);
  const auto garbage = values_of<float>(gw.tensor());
  expect_error([&] { lut::backward(*c.layer, w, short_gy, saved, {.gw = gw.tensor()}, *c.work); },
               {"gy is [2, 3]"});
  expect_same_bits(values_of<float>(gw.tensor()), garbage, "gw");
  gw.expect_intact("gw");
}

TEST(LutErrors, SavedTensorsOfOtherLengthsAreRefused) {
  LutCase c(sequence_layer(5, 3, 2, 2, 4, 6), 2, 1);
  auto saved = c.forward().saved;
  saved.length = 7;
  expect_error([&] { c.backward(saved); }, {"sequences of 7", "1 to 6"});
  saved.length = 5;
  expect_error([&] { c.backward(saved); }, {"saved tensor is [2, 6, 3]", "30 elements"});
  saved.length = 6;
  c.gy = Tensor::zeros({2, 5, 4}, Dtype::f32);
  expect_error([&] { c.backward(saved); }, {"gy is [2, 5, 4]", "[2, 6, 4]"});
}

TEST(LutErrors, SavedTensorsAndCachesOfOtherLayersAreRefused) {
  const LutCase wide(sequence_layer(5, 3, 2, 2, 4, 6), 2, 1), few(sequence_layer(5, 3, 1, 4, 4, 6), 2, 1);
  const auto saved = wide.forward().saved;  // as many cells, but earlier positions take other bits
  EXPECT_EQ(wide.layer->cells(), few.layer->cells());
  expect_error([&] { few.backward(saved); }, {"2 anchors and positional_dim 2", "expected 1 and 4"});
  const LutCase four(sequence_layer(5, 4, 2, 2, 4, 6), 2, 1);
  auto cache = lut::make_cache(*wide.layer, 1);
  for (const LutCase* other : {&few, &four})
    expect_error(
        [&] {
          lut::decode(*other->layer, other->weights(), Tensor::zeros({1, 5}, Dtype::f32, test_device()),
                      other->embeddings(), host_i32({1}, {0}), host_i32({1}, {0}), cache, *other->work);
        },
        {"the cache is of a layer with other tables, anchors"});
}

// A copy of a saved tensor on the test device with one value changed.
Tensor with_value(const Tensor& saved, int64_t at, int32_t value) {
  Tensor host = Tensor::empty(saved.shape(), Dtype::i32);
  const auto values = values_of<int32_t>(saved);
  std::copy(values.begin(), values.end(), host.data_as<int32_t>());
  host.data_as<int32_t>()[at] = value;
  return host.to(test_device());
}

void expect_refused(const LutCase& c, lut::Saved saved, const std::vector<std::string>& parts) {
  using Policy = lut::WeightPolicy;
  saved.unchanged = false;
  const Tensor w = c.weights(), gy = c.gy.to(test_device());
  const auto before = values_of<float>(w);
  for (const Policy policy : {Policy::none, Policy::dense, Policy::rows, Policy::internal})
    expect_error([&] { lut::backward(*c.layer, w, gy, saved, {.policy = policy, .eta = 1}, *c.work); },
                 parts);
  expect_same_bits(values_of<float>(w), before, "weights");
}

TEST(LutErrors, SavedIndicesOutsideOfTheTablesAreRefused) {
  lut::LayerOptions o = rows_layer(5, 3, 2, 4);
  o.anchors.data_as<int32_t>()[6] = -1;  // pair 1 of table 1
  const LutCase c(o, 4, 1);
  const auto good = c.forward().saved;
  EXPECT_NO_THROW(c.backward(good));
  for (const int32_t bad : {4, -1, -5, 1 << 28, INT32_MAX, INT32_MIN}) {
    auto saved = good;
    saved.index = with_value(good.index, 7, bad);
    expect_refused(c, saved, {"saved index of row 2, table 1 is " + std::to_string(bad), "expected 0 to 3"});
  }
  for (const int32_t bad : {2, -2, 30, INT32_MAX, INT32_MIN}) {
    auto saved = good;
    saved.min_index = with_value(good.min_index, 11, bad);
    expect_refused(c, saved,
                   {"saved min_index of row 3, table 2 is " + std::to_string(bad), "expected -1 to 1"});
  }
  auto saved = good;
  saved.min_index = with_value(good.min_index, 4, 1);
  expect_refused(c, saved, {"saved min_index of row 1, table 1 is 1", "a pair that is used"});
  saved = good;
  saved.index = with_value(with_value(good.index, 9, 100), 2, 50);
  expect_refused(c, saved, {"row 0, table 2 is 50"});  // the first of two
}

TEST(LutErrors, SavedIndicesOfSequencesAreHeldToTheirBits) {
  const LutCase c(sequence_layer(5, 3, 2, 3, 4, 6), 2, 1);
  const auto good = c.forward().saved;
  EXPECT_NO_THROW(c.backward(good));
  auto saved = good;
  saved.index = with_value(good.index, 35, 4);  // a cell of the table, not the index of a position
  expect_refused(c, saved, {"saved index of row 11, table 2 is 4", "expected 0 to 3"});
  saved = good;
  saved.pe_index = with_value(good.pe_index, 14, 8);
  expect_refused(c, saved, {"saved pe_index of row 4, table 2 is 8", "expected 0 to 7"});
  saved = good;
  saved.pe_min_index = with_value(good.pe_min_index, 0, 3);
  expect_refused(c, saved, {"saved pe_min_index of row 0, table 0 is 3", "expected -1 to 2"});
}

TEST(LutErrors, ALargeSavedIndexIsScannedToItsEnd) {
  const LutCase c(rows_layer(5, 7, 2, 1), 20000, 1);
  auto saved = c.forward().saved;
  const int64_t last = saved.index.numel() - 1;
  saved.index = with_value(saved.index, last, 4);
  saved.unchanged = false;
  expect_error([&] { c.backward(saved); }, {"saved index of row 19999, table 6 is 4"});
}

TEST(LutErrors, RoomForResultsHasTheirShape) {
  const LutCase c(sequence_layer(5, 3, 2, 3, 4, 6), 2, 1);
  const auto f = c.forward();
  const Device device = test_device();
  const auto forward_into = [&](const lut::Forward& into) {
    return [&, into] {
      lut::forward(*c.layer, c.weights(), c.x.to(device), c.embeddings(), true, *c.work, false, into);
    };
  };
  expect_error(forward_into({.y = Tensor::zeros({2, 6, 5}, Dtype::f32, device), .saved = {}}),
               {"lut forward: y is [2, 6, 5], expected a writable [2, 6, 4]"});
  lut::Forward into;
  into.saved.index = Tensor::zeros({2, 6, 3}, Dtype::f32, device);
  expect_error(forward_into(into), {"lut forward: index is float32, expected int32"});
  into = {};
  into.saved.pe_min_delta = Tensor::zeros({6, 3}, Dtype::f32, device);
  expect_error(forward_into(into), {"pe_min_delta is [6, 3], expected a writable [5, 3]"});
  const Tensor gx = Tensor::zeros({2, 6, 5}, Dtype::f32, device);
  const Tensor sealed = Tensor::wrap(gx.data(), gx.shape(), Dtype::f32, device, gx.owner(), {}, true);
  expect_error([&] { c.backward(f.saved, {.gx = sealed}); }, {"lut backward: gx is [2, 6, 5] and read-only"});
  expect_error([&] { c.backward(f.saved, {.gpe = gx}); }, {"lut backward: gpe is [2, 6, 5], expected"});
}

// The CPU looks in any case; a device replaces what would lead a kernel out of its tables.
TEST(LutErrors, ASavedThatIsNotUnchangedLeadsNoKernelAstray) {
  const LutCase c(rows_layer(5, 3, 2, 4), 4, 1);
  auto saved = c.forward().saved;
  ASSERT_TRUE(saved.unchanged);
  saved.index = with_value(saved.index, 7, 1 << 28);
  saved.min_index = with_value(saved.min_index, 3, -7);
  if (is_gpu(test_device().kind))
    EXPECT_NO_THROW(c.backward(saved).gw.to(Device{}));
  else
    expect_error([&] { c.backward(saved); }, {"saved index of row 2, table 1"});
}

TEST(LutErrors, DecodeArguments) {
  const LutCase c(sequence_layer(5, 3, 2, 0, 4, 6), 2, 1);
  expect_error([&] { lut::make_cache(*c.layer, 0); }, {"slots is 0"});
  const LutCase rows(rows_layer(5, 3, 2, 4), 2, 1);
  expect_error([&] { lut::make_cache(*rows.layer, 1); }, {"mode is rows"});
  auto cache = lut::make_cache(*c.layer, 2, 2);
  const auto call = [&](int64_t count, std::vector<int32_t> slots, std::vector<int32_t> positions) {
    return [&, count, slots, positions] {
      lut::decode(*c.layer, c.weights(), Tensor::zeros({count, 5}, Dtype::f32, test_device()), {},
                  host_i32({static_cast<int64_t>(slots.size())}, slots),
                  host_i32({static_cast<int64_t>(positions.size())}, positions), cache, *c.work);
    };
  };
  expect_error(call(1, {2}, {0}), {"slots[0] is 2", "0 to 1"});
  expect_error(call(1, {0}, {-1}), {"positions[0] is -1"});
  expect_error(call(2, {0}, {0, 1}), {"slots is [1]", "[2]"});
  expect_error(call(3, {0, 0, 0}, {0, 1, 2}), {"3 rows", "made for 2"});
}

}  // namespace
}  // namespace trivium::testing
