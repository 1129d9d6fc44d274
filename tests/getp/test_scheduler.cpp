#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "core/error.h"
#include "getp/fake_model.h"
#include "getp/scheduler.h"

namespace trivium::getp {
namespace {

using testing::byte_tokenizer;
using testing::FakeModel;
using testing::FakeOptions;

struct Outcome {
  std::map<int64_t, Result> results;
  SchedulerStats stats;
  size_t largest_batch = 0;
};

struct Config {
  int slots = 4;
  int64_t chunk = 256;
  int64_t pages = 0;  // 0: enough
  int64_t max_length = 128;
  uint32_t shuffle = 0;
  FakeOptions fake = {};
  std::shared_ptr<const io::Tokenizer> tokenizer = nullptr;
};

std::vector<Request> some_requests(int count, float temperature = 0) {
  std::mt19937 random(5);
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request r;
    const auto length = 1 + random() % 40;
    for (size_t k = 0; k < length; ++k) r.prompt.push_back(static_cast<int32_t>(3 + random() % 90));
    r.max_tokens = static_cast<int64_t>(1 + random() % 60);
    r.max_positions = 90;
    r.stop_ids = {1, 2};
    r.sampling = {.temperature = temperature, .top_p = 0.95f, .top_k = 0, .min_p = 0, .seed = i % 3u};
    requests.push_back(r);
  }
  return requests;
}

StateOptions states_of(const Config& config) {
  return {.num_slots = config.slots,
          .max_length = config.max_length,
          .max_step_tokens = config.chunk,
          .kv_dtype = Dtype::f32,
          .budget_bytes = config.pages * config.fake.page_bytes};
}

Outcome run(const std::vector<Request>& requests, const Config& config = {}) {
  auto model = std::make_shared<FakeModel>(config.fake, config.tokenizer);
  Outcome out;
  std::map<int64_t, std::vector<int32_t>> streamed;
  Scheduler scheduler(model, states_of(config),
                      {.on_piece =
                           [&](int64_t id, const StreamPiece& p) {
                             if (p.token >= 0) streamed[id].push_back(p.token);
                           },
                       .on_result =
                           [&](int64_t id, Result r) {
                             EXPECT_FALSE(out.results.count(id)) << "two results for " << id;
                             out.results[id] = std::move(r);
                           }});
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (config.shuffle) std::shuffle(order.begin(), order.end(), std::mt19937(config.shuffle));
  for (const size_t i : order) scheduler.submit(static_cast<int64_t>(i), requests[i]);
  for (int steps = 0; !scheduler.idle(); ++steps) {
    scheduler.step();
    if (steps > 100000) ADD_FAILURE() << "no end", std::abort();
  }
  for (const auto& [id, r] : out.results) EXPECT_EQ(streamed[id], r.tokens);
  out.stats = scheduler.stats();
  out.largest_batch = model->largest_batch;
  return out;
}

void expect_same(const Outcome& a, const Outcome& b) {
  ASSERT_EQ(a.results.size(), b.results.size());
  for (const auto& [id, r] : a.results) {
    EXPECT_EQ(r.tokens, b.results.at(id).tokens) << "request " << id;
    EXPECT_EQ(r.finish_reason, b.results.at(id).finish_reason) << "request " << id;
  }
}

class Sampled : public ::testing::TestWithParam<float> {};

TEST_P(Sampled, TokensDoNotDependOnBatchOrderChunkOrMemory) {
  const auto requests = some_requests(40, GetParam());
  Config alone;
  alone.slots = 1;
  const Outcome want = run(requests, alone);
  bool stopped = false, full = false;
  for (const auto& [id, r] : want.results) {
    stopped |= r.finish_reason == FinishReason::stop;
    full |= r.finish_reason == FinishReason::length;
  }
  EXPECT_TRUE(stopped && full) << "the requests should end in both ways";
  int64_t preemptions = 0;
  for (const int slots : {1, 2, 7, 32})
    for (const int64_t chunk : {1, 3, 16, 256})
      for (const int64_t pages : {0, 23, 40})
        for (const uint32_t shuffle : {0u, 1u}) {
          Config config;
          config.slots = slots;
          config.chunk = chunk;
          config.pages = pages;
          config.shuffle = shuffle;
          const Outcome got = run(requests, config);
          expect_same(want, got);
          preemptions += got.stats.preemptions;
          EXPECT_LE(static_cast<int64_t>(got.largest_batch), chunk + slots);
        }
  EXPECT_GT(preemptions, 100);
}

INSTANTIATE_TEST_SUITE_P(Temperature, Sampled, ::testing::Values(0.0f, 1.0f));

TEST(Scheduler, CountsMatchTheResults) {
  const auto requests = some_requests(20);
  Config config;
  config.pages = 30;
  const Outcome got = run(requests, config);
  int64_t prompt = 0, generated = 0;
  for (const auto& [id, r] : got.results) {
    EXPECT_EQ(r.prompt_tokens, static_cast<int64_t>(requests[static_cast<size_t>(id)].prompt.size()));
    EXPECT_EQ(r.completion_tokens, static_cast<int64_t>(r.tokens.size()));
    prompt += r.prompt_tokens;
    generated += r.completion_tokens;
  }
  EXPECT_EQ(got.stats.prompt_tokens, prompt);
  EXPECT_EQ(got.stats.generated_tokens, generated);
}

TEST(Scheduler, TheDrawOfATokenUsesItsIndexAmongTheGenerated) {
  Request r = some_requests(1, 1.0f)[0];
  r.max_tokens = 40;
  r.ignore_eos = true;
  const std::vector<int32_t> got = run({r}).results.at(0).tokens;
  FakeModel model;
  const auto states = model.make_states(states_of({}));
  ASSERT_TRUE(states->reserve(0, 128));
  std::vector<int32_t> next = r.prompt;
  int64_t start = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const Segment segment{.slot = 0, .start = start, .count = static_cast<int64_t>(next.size())};
    const Tensor logits = model.forward({.tokens = next, .segments = {&segment, 1}}, *states, nullptr);
    start += segment.count;
    const ops::SampleRow row{.params = r.sampling, .step = i};
    next.assign(1, -1);
    ops::sample(logits, {&row, 1}, next);
    ASSERT_EQ(got[i], next[0]) << "token " << i;
  }
}

TEST(Scheduler, PositionsAndTokensBothLimit) {
  FakeOptions fake;
  fake.stop_ids = {};
  const auto length_of = [&](int64_t prompt, int64_t max_tokens, int64_t max_positions) {
    Request r;
    r.prompt.assign(static_cast<size_t>(prompt), 5);
    r.max_tokens = max_tokens;
    r.max_positions = max_positions;
    Config config;
    config.fake = fake;
    const Outcome got = run({r}, config);
    EXPECT_EQ(got.results.at(0).finish_reason, FinishReason::length);
    return got.results.at(0).completion_tokens;
  };
  EXPECT_EQ(length_of(10, -1, 20), 10);
  EXPECT_EQ(length_of(10, 4, 20), 4);
  EXPECT_EQ(length_of(10, 15, 20), 10);
  EXPECT_EQ(length_of(10, 0, 20), 0);
  EXPECT_EQ(length_of(20, -1, 20), 0);
  EXPECT_EQ(length_of(30, 5, 20), 0);
}

TEST(Scheduler, IgnoreEosRunsToTheLimit) {
  auto requests = some_requests(20);
  for (Request& r : requests) {
    r.ignore_eos = true;
    r.max_tokens = 50;
  }
  for (const auto& [id, r] : run(requests).results) {
    EXPECT_EQ(r.finish_reason, FinishReason::length);
    EXPECT_EQ(r.completion_tokens, std::min<int64_t>(50, 90 - r.prompt_tokens));
  }
}

TEST(Scheduler, RefusalsNameTheProblemAndLeaveOthersAlone) {
  auto requests = some_requests(3);
  requests[1].prompt = {};
  Request bad = requests[0];
  bad.prompt = {5, 97};
  requests.push_back(bad);
  bad = requests[0];
  bad.stop = {"x"};
  requests.push_back(bad);
  bad = requests[0];
  bad.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  requests.push_back(bad);
  bad = requests[0];
  bad.max_positions = 0;
  bad.max_tokens = 1000;  // more than the states hold
  requests.push_back(bad);
  const Outcome got = run(requests);
  EXPECT_EQ(got.results.at(1).error, "the prompt is empty: at least one token is needed");
  EXPECT_EQ(got.results.at(3).error, "prompt token 1 is 97, expected 0 to 96");
  EXPECT_NE(got.results.at(4).error.find("has none"), std::string::npos);
  EXPECT_NE(got.results.at(5).error.find("temperature is nan"), std::string::npos);
  EXPECT_NE(got.results.at(6).error.find("positions, more than the cache"), std::string::npos);
  for (const int64_t id : {1, 3, 4, 5, 6}) EXPECT_EQ(got.results.at(id).finish_reason, FinishReason::error);
  for (const int64_t id : {0, 2}) EXPECT_NE(got.results.at(id).finish_reason, FinishReason::error);
}

TEST(Scheduler, AFailedStepIsComputedAgainWithTheSameTokens) {
  const auto requests = some_requests(12);
  const Outcome want = run(requests);
  FakeOptions fake;
  fake.on_forward = [](int64_t step) {
    if (step % 7 == 3) throw OutOfMemory("planned");
  };
  auto model = std::make_shared<FakeModel>(fake);
  std::map<int64_t, Result> results;
  Scheduler scheduler(model, states_of({}),
                      {.on_piece = {}, .on_result = [&](int64_t id, Result r) { results[id] = r; }});
  for (size_t i = 0; i < requests.size(); ++i) scheduler.submit(static_cast<int64_t>(i), requests[i]);
  int failures = 0;
  while (!scheduler.idle()) {
    try {
      scheduler.step();
    } catch (const OutOfMemory&) {
      ASSERT_LT(++failures, 10000);
    }
  }
  EXPECT_GT(failures, 5);
  for (const auto& [id, r] : want.results) EXPECT_EQ(results.at(id).tokens, r.tokens);
}

TEST(Scheduler, CancelEndsOneRequestAndFreesItsMemory) {
  auto requests = some_requests(6);
  for (Request& r : requests) r.ignore_eos = true;
  const Outcome want = run(requests);
  auto model = std::make_shared<FakeModel>();
  std::map<int64_t, Result> results;
  Config config;
  config.slots = 2;
  Scheduler scheduler(model, states_of(config),
                      {.on_piece = {}, .on_result = [&](int64_t id, Result r) { results[id] = r; }});
  for (size_t i = 0; i < requests.size(); ++i) scheduler.submit(static_cast<int64_t>(i), requests[i]);
  scheduler.step();
  scheduler.cancel(0);   // running
  scheduler.cancel(5);   // waiting
  scheduler.cancel(77);  // unknown
  while (!scheduler.idle()) scheduler.step();
  EXPECT_EQ(results.at(0).finish_reason, FinishReason::cancelled);
  EXPECT_EQ(results.at(5).finish_reason, FinishReason::cancelled);
  EXPECT_TRUE(results.at(5).tokens.empty());
  for (const int64_t id : {1, 2, 3, 4}) EXPECT_EQ(results.at(id).tokens, want.results.at(id).tokens);
  for (int slot = 0; slot < 2; ++slot) EXPECT_TRUE(scheduler.states().reserve(slot, 128));
}

TEST(Scheduler, RequestsMayArriveWhileOthersRun) {
  const auto requests = some_requests(10);
  const Outcome want = run(requests);
  auto model = std::make_shared<FakeModel>();
  std::map<int64_t, Result> results;
  Scheduler scheduler(model, states_of({}),
                      {.on_piece = {}, .on_result = [&](int64_t id, Result r) { results[id] = r; }});
  for (size_t i = 0; i < requests.size(); ++i) {
    scheduler.submit(static_cast<int64_t>(i), requests[i]);
    scheduler.step();
    scheduler.step();
  }
  while (!scheduler.idle()) scheduler.step();
  for (const auto& [id, r] : want.results) EXPECT_EQ(results.at(id).tokens, r.tokens);
}

class Keep : public ::testing::TestWithParam<bool> {};

TEST_P(Keep, AnExtendedPromptReusesTheStateWithTheSameTokens) {
  FakeOptions fake;
  fake.can_copy = GetParam();
  auto model = std::make_shared<FakeModel>(fake);
  Result last;
  Scheduler scheduler(model, states_of({}),
                      {.on_piece = {}, .on_result = [&](int64_t, Result r) { last = r; }});
  Request r;
  for (int i = 0; i < 30; ++i) r.prompt.push_back(10 + i);
  r.max_tokens = 10;
  r.keep_state = true;
  scheduler.submit(0, r);
  while (!scheduler.idle()) scheduler.step();
  // The next turn either drops what was generated (as harmony drops the analysis) or keeps it.
  if (!GetParam()) r.prompt.insert(r.prompt.end(), last.tokens.begin(), last.tokens.end());
  r.prompt.insert(r.prompt.end(), {50, 51, 52});
  const int64_t before = model->tokens_processed;
  scheduler.submit(1, r);
  while (!scheduler.idle()) scheduler.step();
  EXPECT_EQ(scheduler.stats().reused_tokens, GetParam() ? 30 : 39);
  EXPECT_EQ(model->tokens_processed - before, (GetParam() ? 3 : 4) + 9);
  Request fresh = r;
  fresh.keep_state = false;
  EXPECT_EQ(last.tokens, run({fresh}).results.at(0).tokens);
}

INSTANTIATE_TEST_SUITE_P(Copy, Keep, ::testing::Bool());

TEST(Scheduler, KeptStatesGiveWayToRequests) {
  const auto requests = some_requests(20);
  auto keeping = requests;
  for (Request& r : keeping) r.keep_state = true;
  Config config;
  config.pages = 24;
  config.slots = 3;
  expect_same(run(requests, config), run(keeping, config));
}

TEST(Scheduler, ANanRowFailsItsRequestWithThePosition) {
  class NanModel : public FakeModel {
   public:
    Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override {
      Tensor logits = FakeModel::forward(batch, states, cancel);
      if (forwards == 3) logits.data_as<float>()[5] = std::numeric_limits<float>::quiet_NaN();
      return logits;
    }
  };
  Result result;
  Scheduler scheduler(std::make_shared<NanModel>(), states_of({}),
                      {.on_piece = {}, .on_result = [&](int64_t, Result r) { result = r; }});
  Request r;
  r.prompt = {3, 4, 5};
  r.max_tokens = 10;
  scheduler.submit(0, r);
  while (!scheduler.idle()) scheduler.step();
  EXPECT_EQ(result.finish_reason, FinishReason::error);
  EXPECT_EQ(result.completion_tokens, 2);
  EXPECT_EQ(result.error, "the model's logits after 5 tokens are not numbers (NaN)");
}

TEST(Scheduler, StopStringsCutTheTextAndEndTheRequest) {
  FakeOptions fake;
  fake.vocab_size = 259;
  Config config;
  config.fake = fake;
  config.tokenizer = byte_tokenizer();
  Request r;
  r.prompt = {3 + 'a', 3 + 'b'};
  r.max_tokens = 60;
  const Result whole = run({r}, config).results.at(0);
  ASSERT_EQ(whole.finish_reason, FinishReason::length);
  // The bytes of tokens 20 and 21, if both are ASCII, make a stop string that spans two tokens.
  size_t at = 0;
  for (size_t i = 10; i + 1 < whole.tokens.size() && at == 0; ++i)
    if (whole.tokens[i] < 3 + 128 && whole.tokens[i] >= 3 && whole.tokens[i + 1] < 3 + 128 &&
        whole.tokens[i + 1] >= 3)
      at = i;
  ASSERT_GT(at, 0u);
  r.stop = {std::string{static_cast<char>(whole.tokens[at] - 3), static_cast<char>(whole.tokens[at + 1] - 3)},
            "never"};
  const Result cut = run({r}, config).results.at(0);
  EXPECT_EQ(cut.finish_reason, FinishReason::stop);
  EXPECT_EQ(cut.tokens,
            std::vector<int32_t>(whole.tokens.begin(), whole.tokens.begin() + static_cast<long>(at) + 2));
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(r.stop[0])));
}

}  // namespace
}  // namespace trivium::getp
