// What a scheduler's step asks of a device: how often the host waits, and what a step that failed leaves.
#include <functional>
#include <map>

#include "getp/scheduler.h"
#include "models/tiny_checkpoint.h"
#include "support/waits.h"

namespace trivium::testing {
namespace {

std::vector<getp::Request> some_requests() {
  std::vector<getp::Request> requests;
  for (int32_t i = 0; i < 3; ++i) {
    getp::Request r;
    r.prompt = {5 + i, 6, 7};
    r.max_tokens = 9 + i;
    r.ignore_eos = true;
    r.sampling = {.temperature = 0.9f, .top_p = 0.95f, .top_k = 0, .min_p = 0, .seed = 3u + i};
    requests.push_back(r);
  }
  return requests;
}

// The tokens of all requests; `on_step` runs one step.
using Steps = std::function<void(getp::Scheduler&)>;
std::map<int64_t, std::vector<int32_t>> run(std::shared_ptr<Model> model, const Steps& on_step) {
  std::map<int64_t, std::vector<int32_t>> tokens;
  getp::Scheduler scheduler(
      std::move(model), {.num_slots = 3, .max_length = 32, .max_step_tokens = 16},
      {.on_piece = {}, .on_result = [&](int64_t id, getp::Result r) { tokens[id] = std::move(r.tokens); }});
  int64_t id = 0;
  for (const getp::Request& r : some_requests()) scheduler.submit(id++, r);
  for (int step = 0; !scheduler.idle() && step < 100; ++step) on_step(scheduler);
  return tokens;
}

TEST(DeviceSteps, AStepWaitsForTheDeviceOnce) {
  if (!emulated()) GTEST_SKIP() << "the emulator counts";
  const TinyCheckpoint checkpoint;
  int64_t steps = 0;
  run(checkpoint.load(Precision::bfloat16), [&](getp::Scheduler& scheduler) {
    const int64_t before = device_waits();
    scheduler.step();
    EXPECT_EQ(device_waits() - before, 1) << "step " << steps;
    ++steps;
  });
  EXPECT_EQ(steps, 11);  // the prompts together, then up to ten decode steps
}

// Passes steps on, and lets the third and the fifth fail once all of their work is on the stream, sampling
// included.
class Failing : public Model {
 public:
  explicit Failing(std::shared_ptr<Model> model) : model_(std::move(model)) {}
  const ModelInfo& info() const override { return model_->info(); }
  Dtype default_kv_dtype() const override { return model_->default_kv_dtype(); }
  int64_t state_bytes(const StateOptions& options) const override { return model_->state_bytes(options); }
  std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const override {
    return model_->make_states(options);
  }
  Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override {
    ++steps_;
    Batch failing = batch;
    failing.follow_up = [&](Stream& stream, const Tensor& logits) {
      batch.follow_up(stream, logits);
      if (steps_ == 3 || steps_ == 5) throw Cancelled("cancelled");
    };
    return model_->forward(failing, states, cancel);
  }

 private:
  std::shared_ptr<Model> model_;
  int64_t steps_ = 0;
};

TEST(DeviceSteps, AStepThatFailsAfterItWasQueuedLeavesTheNextOnesRight) {
  if (!is_gpu(test_device().kind)) GTEST_SKIP() << "a CPU queues nothing";
  const TinyCheckpoint checkpoint;
  const auto model = checkpoint.load(Precision::bfloat16);
  const auto want = run(model, [](getp::Scheduler& scheduler) { scheduler.step(); });
  ASSERT_EQ(want.size(), 3u);
  int failures = 0;
  const auto got = run(std::make_shared<Failing>(model), [&](getp::Scheduler& scheduler) {
    try {
      scheduler.step();
    } catch (const Cancelled&) {
      ++failures;
    }
  });
  EXPECT_EQ(failures, 2);
  EXPECT_EQ(got, want);
}

TEST(DeviceSteps, TokensAreThoseOfSamplingApart) {
  const TinyCheckpoint checkpoint;
  const auto model = checkpoint.load(Precision::bfloat16);
  const auto got = run(model, [](getp::Scheduler& scheduler) { scheduler.step(); });
  const getp::Request request = some_requests()[1];
  const auto states = model->make_states({.num_slots = 1, .max_length = 32, .max_step_tokens = 16});
  ASSERT_TRUE(states->reserve(0, 32));
  std::vector<int32_t> next = request.prompt;
  int64_t start = 0;
  for (size_t i = 0; i < got.at(1).size(); ++i) {
    const Segment segment{.slot = 0, .start = start, .count = static_cast<int64_t>(next.size())};
    const Tensor logits = model->forward({.tokens = next, .segments = {&segment, 1}}, *states, nullptr);
    start += segment.count;
    const ops::SampleRow row{.params = request.sampling, .step = i};
    next.assign(1, -1);
    ops::sample(logits, {&row, 1}, next);
    ASSERT_EQ(got.at(1)[i], next[0]) << "token " << i;
  }
}

}  // namespace
}  // namespace trivium::testing
