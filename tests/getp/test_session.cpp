#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "core/error.h"
#include "getp/fake_model.h"
#include "getp/session.h"
#include "support/temp_folder.h"

namespace trivium::getp {
namespace {

using testing::byte_tokenizer;
using testing::error_of;
using testing::FakeModel;
using testing::FakeOptions;

Request request(uint32_t seed, int64_t max_tokens = 20) {
  std::mt19937 random(seed);
  Request r;
  for (size_t n = 1 + random() % 30; n-- > 0;) r.prompt.push_back(static_cast<int32_t>(3 + random() % 200));
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  r.sampling.temperature = 1;
  r.sampling.seed = seed;
  return r;
}

std::shared_ptr<FakeModel> text_model(FakeOptions fake = {}) {
  fake.vocab_size = 259;
  return std::make_shared<FakeModel>(fake, byte_tokenizer());
}

std::vector<std::vector<int32_t>> tokens_of(const std::vector<Result>& results) {
  std::vector<std::vector<int32_t>> out;
  for (const Result& r : results) out.push_back(r.tokens);
  return out;
}

std::vector<Request> requests(uint32_t count) {
  std::vector<Request> out;
  for (uint32_t i = 0; i < count; ++i) out.push_back(request(i));
  return out;
}

TEST(Engine, GeneratesInOrderWithCallbacks) {
  Engine engine(text_model());
  std::vector<std::vector<int32_t>> streamed(10);
  int64_t ended = 0;
  EngineProgress last;
  const auto results = engine.generate(
      requests(10), {.on_token = [&](size_t i, int32_t token) { streamed[i].push_back(token); },
                     .on_result = [&](size_t, const Result&) { ++ended; },
                     .on_progress = [&](const EngineProgress& p) { last = p; }});
  EXPECT_EQ(tokens_of(results), streamed);
  EXPECT_EQ(ended, 10);
  EXPECT_EQ(last.requests_done, 10);
  EXPECT_EQ(last.generated_tokens, 200);
  for (uint32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(results[i].finish_reason, FinishReason::length);
    EXPECT_EQ(results[i].tokens, Engine(text_model()).generate({request(i)})[0].tokens);
    EXPECT_EQ(results[i].text, io::sanitize_utf8(byte_tokenizer()->decode(results[i].tokens)));
  }
}

TEST(Engine, GrowsItsStatesForLongerRequestsAndMoreOfThem) {
  Engine engine(text_model(), {.batch_size = 4, .max_step_tokens = 16, .kv_dtype = {}, .budget_bytes = 0});
  const auto first = engine.generate({request(1)})[0].tokens;
  Request longer = request(2, 700);
  EXPECT_EQ(engine.generate({longer})[0].completion_tokens, 700);
  auto many = requests(9);
  many.push_back(request(50, 1500));
  const auto results = engine.generate(many);
  EXPECT_EQ(results[1].tokens, first);
  EXPECT_EQ(results[9].completion_tokens, 1500);
  engine.release_states();
  EXPECT_EQ(engine.generate({request(1)})[0].tokens, first);
}

TEST(Engine, StreamsEqualGenerateWhenInterleaved) {
  Engine engine(text_model());
  const auto want = engine.generate({request(1), request(2, 33)});
  const auto a = engine.stream(request(1)), b = engine.stream(request(2, 33));
  std::vector<int32_t> got_a, got_b;
  std::string text_a;
  bool more = true;
  while (more) {
    more = false;
    if (const auto piece = a->next()) {
      if (piece->token >= 0) got_a.push_back(piece->token);
      text_a += piece->text;
      more = true;
    }
    for (int i = 0; i < 2; ++i)
      if (const auto piece = b->next()) {
        if (piece->token >= 0) got_b.push_back(piece->token);
        more = true;
      }
  }
  EXPECT_EQ(got_a, want[0].tokens);
  EXPECT_EQ(text_a, want[0].text);
  EXPECT_EQ(got_b, want[1].tokens);
  EXPECT_EQ(a->result().text, want[0].text);
  EXPECT_FALSE(a->next());
}

TEST(Engine, AnAbandonedStreamFreesItsSlot) {
  auto model = text_model();
  Engine engine(model, {.batch_size = 1, .max_step_tokens = 256, .kv_dtype = {}, .budget_bytes = 0});
  {
    const auto stream = engine.stream(request(1, 1000));
    ASSERT_TRUE(stream->next());
  }
  EXPECT_EQ(engine.generate({request(2)})[0].completion_tokens, 20);
  EXPECT_NO_THROW(engine.release_states());
}

TEST(Engine, CancelReturnsWhatCameAndLeavesTheEngineUsable) {
  auto model = text_model();
  Engine engine(model);
  CancelToken cancel;
  int count = 0;
  const auto results = engine.generate({request(1, 500), request(2, 500)},
                                       {.on_token =
                                            [&](size_t, int32_t) {
                                              if (++count == 20) cancel.cancel();
                                            },
                                        .on_result = {},
                                        .on_progress = {}},
                                       &cancel);
  const auto whole = engine.generate({request(1, 500), request(2, 500)});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(results[i].finish_reason, FinishReason::cancelled);
    EXPECT_GE(results[i].completion_tokens, 10);
    EXPECT_LT(results[i].completion_tokens, 20);
    EXPECT_TRUE(std::equal(results[i].tokens.begin(), results[i].tokens.end(), whole[i].tokens.begin()));
  }
  const auto stream = engine.stream(request(3));
  EXPECT_THROW(stream->next(&cancel), Cancelled);
  EXPECT_FALSE(stream->next());
}

TEST(Engine, AThrowingCallbackWithdrawsItsRequests) {
  Engine engine(text_model());
  EXPECT_THROW(
      engine.generate({request(1)}, {.on_token = [](size_t, int32_t) { throw InvalidArgument("mine"); },
                                     .on_result = {},
                                     .on_progress = {}}),
      InvalidArgument);
  EXPECT_NO_THROW(engine.release_states());
  EXPECT_EQ(engine.generate({request(1)})[0].completion_tokens, 20);
}

TEST(Engine, AFailingModelThrowsAndTheNextCallWorks) {
  FakeOptions fake;
  fake.on_forward = [](int64_t step) {
    if (step == 5) throw OutOfMemory("planned");
  };
  Engine engine(text_model(fake));
  EXPECT_THROW(engine.generate({request(1)}), OutOfMemory);
  EXPECT_EQ(engine.generate({request(1)})[0].tokens, Engine(text_model()).generate({request(1)})[0].tokens);
}

TEST(Engine, RefusedRequestsFailAlone) {
  Engine engine(text_model());
  Request bad = request(1);
  bad.prompt = {300};
  const auto results = engine.generate({request(2), bad});
  EXPECT_EQ(results[0].finish_reason, FinishReason::length);
  EXPECT_EQ(results[1].finish_reason, FinishReason::error);
  EXPECT_EQ(results[1].error, "prompt token 0 is 300, expected 0 to 258");
  EXPECT_THROW(engine.check(bad), InvalidArgument);
  EXPECT_THROW(engine.stream(bad)->next(), InvalidArgument);
}

TEST(Engine, MemoryTooSmallForOneSequenceIsSaidWithNumbers) {
  Engine engine(text_model(),
                {.batch_size = 0, .max_step_tokens = 256, .kv_dtype = {}, .budget_bytes = 2048});
  const std::string why = error_of([&] { engine.generate({request(1, 1000)}); });
  EXPECT_NE(why.find("one sequence of 1280 positions needs 320.0 KiB"), std::string::npos) << why;
}

TEST(Engine, ThreadsShareTheBatchAndGetTheirOwnTokens) {
  FakeOptions fake;
  Engine engine(text_model(fake));
  const auto want = tokens_of(Engine(text_model()).generate(requests(24)));
  std::vector<std::vector<int32_t>> got(24);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::vector<Request> mine;
      for (uint32_t i = t; i < 16; i += 4) mine.push_back(request(i));
      const auto results = engine.generate(mine);
      for (uint32_t k = 0; k < results.size(); ++k) got[t + 4 * k] = results[k].tokens;
    });
  for (uint32_t t = 16; t < 24; ++t)
    threads.emplace_back([&, t] {
      const auto stream = engine.stream(request(t));
      while (const auto piece = stream->next())
        if (piece->token >= 0) got[t].push_back(piece->token);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(got, want);
}

TEST(Engine, OneThreadsCancelLeavesTheOthersAlone) {
  FakeOptions fake;
  fake.on_forward = [](int64_t) { std::this_thread::sleep_for(std::chrono::microseconds(200)); };
  Engine engine(text_model(fake));
  const auto want = Engine(text_model()).generate({request(1, 300)})[0].tokens;
  CancelToken cancel;
  std::thread other([&] {
    const auto results = engine.generate({request(2, 3000)}, {}, &cancel);
    EXPECT_EQ(results[0].finish_reason, FinishReason::cancelled);
  });
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    cancel.cancel();
  });
  EXPECT_EQ(engine.generate({request(1, 300)})[0].tokens, want);
  other.join();
  canceller.join();
}

TEST(TextRequest, NeedsATokenizerAndAPrompt) {
  EXPECT_NE(error_of([] { text_request(FakeModel(), "a"); }).find("has no tokenizer"), std::string::npos);
  EXPECT_NE(error_of([] { text_request(*text_model(), ""); }).find("prompt is empty"), std::string::npos);
  EXPECT_EQ(text_request(*text_model(), "ab").prompt, (std::vector<int32_t>{3 + 'a', 3 + 'b'}));
}

TEST(ChatRequest, SaysWhenTheTokenizerCannotChat) {
  const std::string why = error_of([] { chat_request(*text_model(), {}); });
  EXPECT_NE(why.find("has no harmony tokens"), std::string::npos) << why;
}

TEST(AllLogits, EqualOneForwardOverAnyLength) {
  auto model = text_model();
  std::vector<int32_t> ids;
  for (int i = 0; i < 700; ++i) ids.push_back(3 + i % 200);
  const Tensor logits = all_logits(*model, ids);
  ASSERT_EQ(logits.shape(), (Shape{700, 259}));
  const auto states = model->make_states(
      {.num_slots = 1, .max_length = 700, .max_step_tokens = 700, .kv_dtype = Dtype::f32, .budget_bytes = 0});
  ASSERT_TRUE(states->reserve(0, 700));
  const Segment segment{.slot = 0, .start = 0, .count = 700, .logits = Segment::Logits::all};
  const Tensor want = model->forward({.tokens = ids, .segments = {&segment, 1}}, *states, nullptr);
  EXPECT_EQ(std::memcmp(logits.data(), want.data(), static_cast<size_t>(want.nbytes())), 0);
  EXPECT_THROW(all_logits(*model, {}), InvalidArgument);
  EXPECT_THROW(all_logits(*model, std::vector<int32_t>{5, 259}), InvalidArgument);
}

}  // namespace
}  // namespace trivium::getp
