// forward(): logits that do not depend on how tokens are cut into steps, argument checks, cancelling.
#include <chrono>
#include <thread>

#include "models/tiny_checkpoint.h"
#include "support/compare.h"

namespace trivium::testing {
namespace {

std::vector<int32_t> random_tokens(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.integer(0, kVocab - 1)));
  return tokens;
}

std::vector<float> step(Model& model, SequenceStates& states, std::span<const int32_t> tokens,
                        const std::vector<Segment>& segments, const CancelToken* cancel = nullptr) {
  return values_of<float>(model.forward({tokens, segments}, states, cancel));
}

// All logits of a sequence in slot `slot`, fed in pieces of the given sizes.
std::vector<float> logits_in_pieces(Model& model, SequenceStates& states, std::span<const int32_t> tokens,
                                    const std::vector<int64_t>& pieces, int slot = 0) {
  states.release(slot);
  std::vector<float> all;
  int64_t start = 0;
  for (const int64_t count : pieces) {
    EXPECT_TRUE(states.reserve(slot, start + count));
    const auto piece = tokens.subspan(static_cast<size_t>(start), static_cast<size_t>(count));
    const auto rows = step(model, states, piece, {{slot, start, count, Segment::Logits::all}});
    all.insert(all.end(), rows.begin(), rows.end());
    start += count;
  }
  EXPECT_EQ(start, static_cast<int64_t>(tokens.size()));
  return all;
}

std::vector<int64_t> pieces_of(int64_t total, int64_t size) {
  std::vector<int64_t> pieces(static_cast<size_t>(total / size), size);
  if (total % size) pieces.push_back(total % size);
  return pieces;
}

struct Loaded {
  std::shared_ptr<Model> model;
  std::unique_ptr<SequenceStates> states;
  Loaded(const TinyCheckpoint& checkpoint, Precision precision, Dtype kv, int64_t max_step = 43)
      : model(checkpoint.load(precision)),
        states(model->make_states(
            {.num_slots = 4, .max_length = 64, .max_step_tokens = max_step, .kv_dtype = kv})) {}
};

class Forward : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { checkpoint_ = std::make_unique<TinyCheckpoint>(); }
  static void TearDownTestSuite() { checkpoint_.reset(); }
  static std::unique_ptr<TinyCheckpoint> checkpoint_;
};
std::unique_ptr<TinyCheckpoint> Forward::checkpoint_;

TEST_F(Forward, LogitsAreBitEqualForEveryChunkingPrecisionAndCache) {
  const auto tokens = random_tokens(43, 1);
  const std::vector<int64_t> sizes =
      emulated() ? std::vector<int64_t>{1, 8} : std::vector<int64_t>{1, 2, 3, 5, 7, 8};
  for (const Precision precision : {Precision::float32, Precision::bfloat16})
    for (const Dtype kv : {Dtype::f32, Dtype::bf16}) {
      if (emulated() && (precision == Precision::bfloat16) != (kv == Dtype::bf16)) continue;
      Loaded whole(*checkpoint_, precision, kv);
      const auto want = logits_in_pieces(*whole.model, *whole.states, tokens, {43});
      for (const float value : want) ASSERT_TRUE(std::isfinite(value));
      // Steps of at most 8 tokens: the ring is one page and wraps twice.
      Loaded small(*checkpoint_, precision, kv, 8);
      for (const int64_t size : sizes)
        expect_same_bits(logits_in_pieces(*small.model, *small.states, tokens, pieces_of(43, size)), want,
                         concat(name_of(precision), ", cache ", kv, ", pieces of ", size));
      expect_same_bits(logits_in_pieces(*small.model, *small.states, tokens, {8, 1, 1, 6, 8, 3, 1, 7, 1, 7}),
                       want, "mixed");
    }
}

TEST_F(Forward, ASequenceDoesNotSeeTheOthersInItsBatch) {
  Loaded s(*checkpoint_, Precision::float32, Dtype::f32);
  const auto tokens = random_tokens(20, 2), others = random_tokens(40, 3);
  const auto want = logits_in_pieces(*s.model, *s.states, tokens, {20});
  for (int slot = 0; slot < 4; ++slot) {
    s.states->release(slot);
    ASSERT_TRUE(s.states->reserve(slot, 40));
  }
  std::vector<float> got;
  int64_t start = 0, other = 0;
  for (const int64_t count : {1, 7, 3, 9}) {
    std::vector<int32_t> batch(others.begin() + other, others.begin() + other + 3);
    batch.insert(batch.end(), tokens.begin() + start, tokens.begin() + start + count);
    batch.push_back(others[static_cast<size_t>(other)]);
    const auto rows = step(*s.model, *s.states, batch,
                           {{3, other, 3, Segment::Logits::none},
                            {1, start, count, Segment::Logits::all},
                            {0, other / 3, 1, Segment::Logits::last}});
    ASSERT_EQ(static_cast<int64_t>(rows.size()), (count + 1) * kVocab);
    got.insert(got.end(), rows.begin(), rows.begin() + count * kVocab);
    start += count, other += 3;
  }
  expect_same_bits(got, want, "slot 1");
}

TEST_F(Forward, BitsDoNotDependOnTheNumberOfThreads) {
  const auto tokens = random_tokens(30, 4);
  Loaded s(*checkpoint_, Precision::bfloat16, Dtype::bf16);
  std::vector<float> want;
  for (int threads = 1; threads <= 5; ++threads) {
    const Threads scope(threads);
    const auto got = logits_in_pieces(*s.model, *s.states, tokens, {30});
    if (threads == 1) want = got;
    expect_same_bits(got, want, concat(threads, " threads"));
  }
}

TEST_F(Forward, RowsFollowWhatEachSegmentAsksFor) {
  Loaded s(*checkpoint_, Precision::float32, Dtype::f32);
  const auto tokens = random_tokens(6, 5);
  const auto all = logits_in_pieces(*s.model, *s.states, tokens, {6});
  s.states->release(0);
  ASSERT_TRUE(s.states->reserve(0, 6));
  expect_same_bits(step(*s.model, *s.states, tokens, {{0, 0, 6, Segment::Logits::last}}),
                   std::span(all).last(kVocab), "last");
  s.states->release(0);
  ASSERT_TRUE(s.states->reserve(0, 6));
  EXPECT_TRUE(step(*s.model, *s.states, tokens, {{0, 0, 6, Segment::Logits::none}}).empty());
  EXPECT_TRUE(step(*s.model, *s.states, {}, {}).empty()) << "an empty batch is no work";
}

TEST_F(Forward, ACopiedSlotContinuesLikeItsSource) {
  Loaded s(*checkpoint_, Precision::float32, Dtype::f32, 8);
  const auto tokens = random_tokens(40, 6);
  const auto want = logits_in_pieces(*s.model, *s.states, tokens, pieces_of(40, 8));
  logits_in_pieces(*s.model, *s.states, std::span(tokens).first(30), pieces_of(30, 8));
  ASSERT_TRUE(s.states->copy(0, 2));
  ASSERT_TRUE(s.states->reserve(2, 40) && s.states->reserve(0, 38));
  const auto other = random_tokens(8, 7);
  step(*s.model, *s.states, other, {{0, 30, 8, Segment::Logits::last}});  // the source goes another way
  std::vector<float> got;
  for (int64_t at = 30; at < 40; ++at) {
    const auto row =
        step(*s.model, *s.states, std::span(tokens).subspan(static_cast<size_t>(at), 1), {{2, at, 1}});
    got.insert(got.end(), row.begin(), row.end());
  }
  expect_same_bits(got, std::span(want).last(10 * kVocab), "copy");
}

TEST_F(Forward, RefusesWhatDoesNotFit) {
  Loaded s(*checkpoint_, Precision::float32, Dtype::f32, 8);
  ASSERT_TRUE(s.states->reserve(0, 10) && s.states->reserve(1, 64));
  const std::vector<int32_t> tokens(9, 1);
  const auto refuse = [&](std::span<const int32_t> ids, const std::vector<Segment>& segments,
                          const std::vector<std::string>& parts) {
    expect_error([&] { s.model->forward({ids, segments}, *s.states, nullptr); }, parts);
  };
  const auto some = [&](size_t count) { return std::span(tokens).first(count); };
  refuse(some(1), {{-1, 0, 1}}, {"forward: slot -1 of 4"});
  refuse(some(1), {{4, 0, 1}}, {"forward: slot 4 of 4"});
  refuse(some(2), {{0, 0, 1}, {0, 1, 1}}, {"forward: slot 0 appears twice"});
  refuse(some(0), {{0, 0, 0}}, {"forward: 0 positions from 0"});
  refuse(some(1), {{0, -1, 1}}, {"forward: 1 positions from -1"});
  refuse(some(1), {{1, 64, 1}}, {"1 positions from 64, the model has 64"});
  refuse(some(1), {{1, INT64_MAX, 1}}, {"the model has 64"});
  refuse(some(1), {{1, 1, INT64_MAX}}, {"the model has 64"});
  refuse(some(2), {{0, 9, 2}}, {"forward: slot 0 has room for 10 positions, 11 are needed"});
  refuse(some(1), {{2, 0, 1}}, {"forward: slot 2 has room for 0 positions"});
  refuse(some(3), {{0, 0, 2}}, {"forward: 3 tokens, but segments of 2"});
  refuse(some(9), {{1, 0, 9}}, {"forward: 9 tokens, at most 8"});
  for (const int32_t id : {-1, 97, INT32_MAX}) {
    const std::vector<int32_t> ids{0, id};
    refuse(ids, {{0, 0, 2}}, {"forward: token 1 is ", concat(id), "the vocabulary has 97"});
  }
  EXPECT_EQ(step(*s.model, *s.states, some(8), {{1, 0, 8}}).size(), static_cast<size_t>(kVocab))
      << "still usable";
}

class OtherStates : public SequenceStates {
 public:
  bool reserve(int, int64_t) override { return true; }
  void release(int) override {}
  int64_t bytes() const override { return 0; }
  int num_slots() const override { return 1; }
  bool can_ever_hold(int64_t) const override { return true; }
  void touch() override {}
};

TEST_F(Forward, RefusesTheStatesOfAnotherFamily) {
  OtherStates states;
  const std::vector<int32_t> tokens{1};
  const std::vector<Segment> segments{{0, 0, 1}};
  expect_error(
      [&] {
        checkpoint_->load()->forward({tokens, segments}, states, nullptr);
      },
      {"another kind of model"});
}

TEST_F(Forward, CancellingBetweenLayersLeavesTheModelUsable) {
  Loaded s(*checkpoint_, Precision::float32, Dtype::f32, 43);
  const auto tokens = random_tokens(43, 8);
  const auto want = logits_in_pieces(*s.model, *s.states, tokens, {43});
  int cancelled = 0;
  for (int delay_us = 0; delay_us < 4000; delay_us += emulated() ? 2000 : 200) {
    CancelToken token;
    s.states->release(0);
    ASSERT_TRUE(s.states->reserve(0, 43));
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
      token.cancel();
    });
    if (delay_us == 0) canceller.join();
    try {
      step(*s.model, *s.states, tokens, {{0, 0, 43, Segment::Logits::all}}, &token);
    } catch (const Cancelled&) {
      ++cancelled;
    }
    if (canceller.joinable()) canceller.join();
    expect_same_bits(logits_in_pieces(*s.model, *s.states, tokens, {43}), want,
                     concat("after ", delay_us, " us"));
  }
  EXPECT_GE(cancelled, 1);
}

TEST_F(Forward, StateBytesAreEstimatedWithinFivePercent) {
  const auto model = checkpoint_->load();
  const StateOptions options{.num_slots = 3, .max_length = 64, .max_step_tokens = 43};
  const auto states = model->make_states(options);
  states->touch();
  const auto tokens = random_tokens(2, 1);
  ASSERT_TRUE(states->reserve(0, 2));
  step(*model, *states, tokens, {{0, 0, 2}});
  EXPECT_NEAR(static_cast<double>(model->state_bytes(options)) / static_cast<double>(states->bytes()), 1,
              0.05);
}

}  // namespace
}  // namespace trivium::testing
