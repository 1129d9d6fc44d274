// How LUT operations use the streams of a device: which stage runs where, what waits for what, and that the
// host waits for nothing.
#include "ops/lut_support.h"
#include "support/waits.h"

namespace trivium::testing {
namespace {

std::vector<std::string> forward_trace(const LutCase& c, bool staged) {
  std::vector<std::string> trace;
  c.work->trace = &trace;
  c.forward(true, staged);
  c.work->trace = nullptr;
  return trace;
}

TEST(LutStreams, ForwardStagesHaveTheNamesOfTheDataFlow) {
  const LutCase rows(rows_layer(7, 5, 3, 6), 3, 1), pairs(sequence_layer(6, 3, 2, 0, 5, 5), 2, 1);
  using Trace = std::vector<std::string>;
  EXPECT_EQ(forward_trace(rows, false), (Trace{"check_detectors on 0", "fill_outputs_fully_connected on 0"}));
  EXPECT_EQ(forward_trace(rows, true),
            (Trace{"check_detectors on 0", "fire_detectors on 0", "fill_outputs_by_forward_groups on 0"}));
  EXPECT_EQ(forward_trace(pairs, true),
            (Trace{"check_detectors_for_sequence on 0", "fill_after_detectors_firing_stat on 0",
                   "densify_firing_stat on 0", "fill_outputs_by_sparse_firings on 0"}));
}

std::vector<std::string> trace_of(LutCase& c, bool staged, const lut::BackwardOptions& options = {}) {
  const auto forward = c.forward();
  std::vector<std::string> trace;
  c.work->trace = &trace;
  c.backward(forward.saved, options, staged);
  c.work->trace = nullptr;
  return trace;
}

TEST(LutStreams, StagesRunOnTheStreamsOfTheDataFlow) {
  LutCase c(rows_layer(7, 5, 3, 6), 3, 1);
  const std::vector<std::string> staged{"fire_detectors_by_lookup_indices on 0",
                                        "record event 0 on 0",
                                        "1 waits for event 0",
                                        "record event 0 on 0",
                                        "2 waits for event 0",
                                        "gather_gradients (main) on 0",
                                        "gather_gradients (alternative) on 1",
                                        "record event 1 on 1",
                                        "0 waits for event 1",
                                        "gather_w_gradients on 2",
                                        "surrogate slopes on 0",
                                        "propagate_through_detectors on 0",
                                        "record event 2 on 2",
                                        "0 waits for event 2"};
  EXPECT_EQ(trace_of(c, true), staged);
  const std::vector<std::string> fused{"1 waits for the beginning", "gather_w_gradients on 1",
                                       "gather_x_gradients on 0",   "propagate_through_detectors on 0",
                                       "record event 1 on 1",       "0 waits for event 1"};
  EXPECT_EQ(trace_of(c, false), fused);
  const std::vector<std::string> internal{"gather_x_gradients on 0", "propagate_through_detectors on 0",
                                          "gather_w_gradients on 0"};
  EXPECT_EQ(trace_of(c, false, {.policy = lut::WeightPolicy::internal, .eta = 0.5f}), internal);
}

TEST(LutStreams, SequenceStagesRunOnTheStreamsOfTheDataFlow) {
  LutCase c(sequence_layer(6, 3, 2, 2, 5, 5), 2, 1);
  std::vector<std::string> forward;
  c.work->trace = &forward;
  c.forward();
  c.work->trace = nullptr;
  const std::vector<std::string> expected{"check_detectors_for_sequence on 0",
                                          "1 waits for the beginning",
                                          "check_positional_embeddings on 1",
                                          "record event 1 on 1",
                                          "0 waits for event 1",
                                          "fill_outputs_for_sequence on 0"};
  EXPECT_EQ(forward, expected);
  const std::vector<std::string> staged{"fill_after_detectors_firing_stat on 0",
                                        "densify_firing_stat on 0",
                                        "record event 0 on 0",
                                        "1 waits for event 0",
                                        "record event 0 on 0",
                                        "2 waits for event 0",
                                        "gather_gradients (main) on 0",
                                        "gather_gradients (alternative) on 2",
                                        "record event 2 on 2",
                                        "0 waits for event 2",
                                        "gather_w_gradients on 1",
                                        "surrogate slopes on 0",
                                        "propagate_through_detectors_for_sequence on 0",
                                        "gather_pe_gradients on 0",
                                        "record event 1 on 1",
                                        "0 waits for event 1"};
  EXPECT_EQ(trace_of(c, true), staged);
  const std::vector<std::string> fused{"1 waits for the beginning",
                                       "gather_w_gradients_for_sequence on 1",
                                       "gather_x_gradients_for_sequence on 0",
                                       "propagate_through_detectors_for_sequence on 0",
                                       "gather_pe_gradients on 0",
                                       "record event 1 on 1",
                                       "0 waits for event 1"};
  EXPECT_EQ(trace_of(c, false), fused);
}

// What a call asks of the host while its inputs are on the device.
template <class Call>
int64_t waits_of(const Call& call) {
  const int64_t before = device_waits();
  call();
  return device_waits() - before;
}

std::vector<LutCase> all_kinds() {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(7, 5, 3, 6), 3, 1);
  cases.emplace_back(rows_layer(7, 5, 3, 6), 3, 1);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row + o) % 2 == 0; }, true);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 5, 5), 2, 1);
  cases.emplace_back(product_layer(4, 3, 3, 2, 9, 4, false), 2, 1);
  const size_t floating = cases.size();
  for (size_t i = 0; i < floating; ++i) {
    LutCase fixed = cases[i];
    fixed.options.int_rescaler = 16;
    fixed.rebuild();
    cases.push_back(fixed);
  }
  return cases;
}

TEST(LutStreams, TheHostWaitsForNothing) {
  if (!emulated()) GTEST_SKIP() << "the emulator counts";
  for (const LutCase& c : all_kinds()) {
    const Tensor w = c.weights(), x = c.x.to(test_device()), pe = c.embeddings(), gy = c.gy.to(test_device());
    const bool fixed = c.options.int_rescaler > 0;
    for (const bool staged : {false, true}) {
      if (staged && (fixed || c.layer->is_product())) continue;
      lut::Forward f;
      EXPECT_EQ(waits_of([&] { f = lut::forward(*c.layer, w, x, pe, true, *c.work, staged); }), 0);
      lut::Gradients g;
      const auto backward = [&](const lut::BackwardOptions& o) {
        g = {};  // giving back what is not in the order of the stream would wait
        return waits_of([&] { g = lut::backward(*c.layer, w, gy, f.saved, o, *c.work, staged); });
      };
      using Policy = lut::WeightPolicy;
      EXPECT_EQ(backward({.policy = Policy::none}), 0);
      EXPECT_EQ(backward({.policy = Policy::dense, .normalized = true}), 0);
      EXPECT_EQ(backward({.policy = Policy::dense, .gw = Tensor::zeros(w.shape(), Dtype::f32, w.device())}),
                0);
      if (!fixed) {
        EXPECT_EQ(backward({.policy = Policy::internal, .eta = 0.5f}), 0);
      }
      EXPECT_GT(backward({.policy = Policy::rows}), 0) << "how many rows there are decides the result's size";
    }
  }
}

// Steps queued one behind the other, their buffers given back before anything has run, end with the weights
// that the CPU has after waiting for each.
TEST(LutStreams, QueuedStepsEqualStepsOneByOne) {
  for (const LutCase& c : all_kinds()) {
    if (c.options.int_rescaler > 0) continue;  // knows no internal updates
    const lut::Layer on_cpu(c.options, Device{});
    lut::Workspace cpu_work{Device{}};
    const Tensor device_w = c.weights(), cpu_w = Tensor::empty(c.w.shape(), Dtype::f32);
    std::copy_n(c.w.data_as<float>(), c.w.numel(), cpu_w.data_as<float>());
    const Tensor device_x = c.x.to(test_device()), device_gy = c.gy.to(test_device()),
                 device_pe = c.embeddings();
    const lut::BackwardOptions update{.policy = lut::WeightPolicy::internal, .eta = 0.25f};
    Tensor y, gx, want_y, want_gx;
    for (int step = 0; step < 4; ++step) {
      const auto f = lut::forward(*c.layer, device_w, device_x, device_pe, true, *c.work);
      gx = lut::backward(*c.layer, device_w, device_gy, f.saved, update, *c.work).gx;
      y = f.y;
      const auto want = lut::forward(on_cpu, cpu_w, c.x, c.pe, true, cpu_work);
      want_gx = lut::backward(on_cpu, cpu_w, c.gy, want.saved, update, cpu_work).gx;
      want_y = want.y;
    }
    expect_same(y, want_y, "y");
    expect_same(gx, want_gx, "gx");
    expect_same_bits(values_of<float>(device_w), values_of<float>(cpu_w), "weights");
  }
}

// Two layers with streams of their own pass results on without the host.
TEST(LutStreams, AnotherLayerReadsAQueuedResult) {
  const LutCase first(rows_layer(7, 5, 3, 6), 3, 1), second(rows_layer(6, 4, 2, 5), 3, 2);
  const Tensor x = first.x.to(test_device()), w = first.weights(), v = second.weights();
  const Tensor waited =
      lut::forward(*first.layer, w, x, {}, false, *first.work).y.to(Device{}).to(test_device());
  const Tensor want = lut::forward(*second.layer, v, waited, {}, false, *second.work).y;
  for (int round = 0; round < 8; ++round) {
    const int64_t before = emulated() ? device_waits() : 0;
    const Tensor y = lut::forward(*first.layer, w, x, {}, false, *first.work).y;
    const Tensor z = lut::forward(*second.layer, v, y, {}, false, *second.work).y;
    if (emulated()) {
      EXPECT_EQ(device_waits(), before);
    }
    expect_same(z, want, "z");
  }
}

// Work of stream `stream` into a buffer that an error lets go of.
void fail_in_the_middle(const LutCase& c, const Tensor& x, int stream) {
  const Tensor index = c.work->buffer({3, 5}, Dtype::i32);
  const lut::Operation operation(*c.work);
  const LutDetectArgs args{.x = x.data_as<float>(),
                           .anchors = c.layer->anchors().data_as<int32_t>(),
                           .index = index.data_as<int32_t>(),
                           .min_delta = nullptr,
                           .min_index = nullptr,
                           .rows = 3,
                           .inputs = 7,
                           .num_tables = 5,
                           .num_anchors = 3,
                           .cmp_eps = 0};
  c.work->run(stream, "check_detectors", &Kernels::lut_check_detectors, "lut_check_detectors", args);
  throw Error("no more");
}

TEST(LutStreams, AnErrorGivesBuffersBackAfterAllStreams) {
  const LutCase c(rows_layer(7, 5, 3, 6), 3, 1);
  const Tensor x = c.x.to(test_device());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(fail_in_the_middle(c, x, 1 + round % 2), Error);
    const auto wait = runtime(test_device()).device_synchronize;
    EXPECT_TRUE(!wait || wait(0) == Status::ok) << backend(test_device().kind).last_error();
  }
}

}  // namespace
}  // namespace trivium::testing
