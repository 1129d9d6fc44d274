// The paged KV cache: page accounting, rings, copies, budgets and size estimates.
#include <set>

#include "models/moe/model.h"
#include "support/backend.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using moe::kPageSize;
using moe::MoeConfig;
using moe::MoeStates;

MoeConfig small_config() {
  MoeConfig c;
  c.vocab_size = 50, c.hidden_size = 32, c.intermediate_size = 32, c.num_layers = 3;
  c.num_heads = 4, c.num_kv_heads = 2, c.head_dim = 8, c.num_experts = 4, c.top_k = 2;
  c.sliding_window = 20, c.sliding = {true, false, true};
  return c;
}

int64_t blocks_for(int64_t length) { return (length + kPageSize - 1) / kPageSize; }

// Page numbers that the cache of `layer` uses for a slot of `length` positions.
std::vector<int32_t> pages(const MoeStates& states, int64_t layer, int slot, int64_t length) {
  const PagedKv kv = states.kv(layer);
  const int64_t count = std::min<int64_t>(blocks_for(length), kv.blocks_per_slot);
  const int32_t* row = kv.block_table + slot * kv.blocks_per_slot;
  return {row, row + count};
}

TEST(MoeStates, RandomReservationsNeverLoseOrShareAPage) {
  const MoeConfig c = small_config();
  StateOptions options{.num_slots = 5, .max_length = 200, .max_step_tokens = 16};
  const int64_t ring = blocks_for(c.sliding_window - 1 + 16);
  for (const int64_t percent : {100, 60, 30}) {
    options.budget_bytes =
        MoeStates::plan(c, {.num_slots = 5, .max_length = 200, .max_step_tokens = 16}).bytes * percent / 100;
    const MoeStates::Plan plan = MoeStates::plan(c, options);
    ASSERT_EQ(plan.ring_blocks, ring);
    EXPECT_LE(plan.bytes, options.budget_bytes);
    MoeStates states(c, options, Dtype::f32);
    Random random(static_cast<uint64_t>(percent));
    std::vector<int64_t> full(5, 0), rings(5, 0), length(5, 0);  // what each slot holds
    int64_t free_full = plan.full_pages, free_ring = plan.ring_pages;
    for (int step = 0; step < 10000; ++step) {
      const int slot = static_cast<int>(random.integer(0, 4));
      const auto s = static_cast<size_t>(slot);
      if (random.integer(0, 2) == 0) {
        states.release(slot);
        free_full += full[s], free_ring += rings[s];
        full[s] = rings[s] = length[s] = 0;
        continue;
      }
      const int64_t wanted = random.integer(0, 210), blocks = blocks_for(wanted);
      const int64_t more_full = std::max<int64_t>(0, blocks - full[s]),
                    more_ring = std::max<int64_t>(0, std::min(blocks, ring) - rings[s]);
      const bool fits = wanted <= 200 && more_full <= free_full && more_ring <= free_ring;
      ASSERT_EQ(states.reserve(slot, wanted), fits) << "step " << step << ", " << wanted << " positions";
      if (wanted <= 200 && more_full <= free_full) free_full -= more_full, full[s] += more_full;
      if (fits) free_ring -= more_ring, rings[s] += more_ring, length[s] = std::max(length[s], wanted);
      ASSERT_EQ(states.reserved(slot), length[s]);
      for (const int64_t layer : {0, 1}) {
        std::set<int32_t> seen;
        size_t count = 0;
        for (int other = 0; other < 5; ++other)
          for (const int32_t page : pages(states, layer, other, length[static_cast<size_t>(other)])) {
            ASSERT_TRUE(0 <= page && page < (layer == 1 ? plan.full_pages : plan.ring_pages));
            seen.insert(page);
            ++count;
          }
        ASSERT_EQ(seen.size(), count) << "two slots share a page of layer " << layer;
      }
    }
    for (int slot = 0; slot < 5; ++slot) states.release(slot);
    int64_t fitting = 0;
    while (fitting < 5 && states.reserve(static_cast<int>(fitting), 200)) ++fitting;
    EXPECT_EQ(fitting, std::min(plan.full_pages / blocks_for(200), plan.ring_pages / ring))
        << "all pages came back";
  }
}

TEST(MoeStates, CanEverHoldIsWhatAnEmptyCacheReserves) {
  const MoeConfig c = small_config();
  for (const int64_t budget : {0, 1, 20000, 60000, 100000}) {
    const StateOptions options{
        .num_slots = 2, .max_length = 300, .max_step_tokens = 8, .budget_bytes = budget};
    MoeStates states(c, options, Dtype::f32);
    for (int64_t length = 1; length <= 310; ++length) {
      ASSERT_EQ(states.can_ever_hold(length), states.reserve(1, length)) << length << " of budget " << budget;
      states.release(1);
    }
  }
}

TEST(MoeStates, GrowingKeepsThePagesAndShrinkingIsNoOp) {
  MoeStates states(small_config(), {.num_slots = 2, .max_length = 100, .max_step_tokens = 4}, Dtype::f32);
  ASSERT_TRUE(states.reserve(0, 20));
  const auto before = pages(states, 1, 0, 20);
  ASSERT_TRUE(states.reserve(1, 40));
  ASSERT_TRUE(states.reserve(0, 90));
  const auto after = pages(states, 1, 0, 90);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), after.begin()));
  ASSERT_TRUE(states.reserve(0, 5));
  EXPECT_EQ(states.reserved(0), 90);
  EXPECT_EQ(pages(states, 1, 0, 90), after);
}

// Fills or reads back every position of a slot in every layer.
void write_slot(MoeStates& states, int slot, int64_t length, float value) {
  for (int64_t layer = 0; layer < 3; ++layer)
    for (const int32_t page : pages(states, layer, slot, length))
      for (void* base : {states.kv(layer).k, states.kv(layer).v})
        std::fill_n(static_cast<float*>(base) + page * 2 * kPageSize * 8, 2 * kPageSize * 8,
                    value + static_cast<float>(layer));
}

bool slot_holds(const MoeStates& states, int slot, int64_t length, float value) {
  for (int64_t layer = 0; layer < 3; ++layer)
    for (const int32_t page : pages(states, layer, slot, length))
      for (const void* base : {states.kv(layer).k, states.kv(layer).v}) {
        const float* p = static_cast<const float*>(base) + page * 2 * kPageSize * 8;
        for (int i = 0; i < 2 * kPageSize * 8; ++i)
          if (p[i] != value + static_cast<float>(layer)) return false;
      }
  return true;
}

TEST(MoeStates, ACopyHoldsTheSameAndGrowsApart) {
  MoeStates states(small_config(), {.num_slots = 3, .max_length = 80, .max_step_tokens = 4}, Dtype::f32);
  ASSERT_TRUE(states.reserve(0, 50));
  write_slot(states, 0, 50, 10);
  ASSERT_TRUE(states.copy(0, 2));
  EXPECT_EQ(states.reserved(2), 50);
  EXPECT_TRUE(slot_holds(states, 2, 50, 10));
  write_slot(states, 2, 50, 20);
  EXPECT_TRUE(slot_holds(states, 0, 50, 10));
  ASSERT_TRUE(states.reserve(2, 80));
  states.release(0);
  EXPECT_TRUE(slot_holds(states, 2, 50, 20));
  ASSERT_TRUE(states.copy(1, 2)) << "the copy of an empty slot is empty";
  EXPECT_EQ(states.reserved(2), 0);
}

TEST(MoeStates, ACopyThatDoesNotFitLeavesTheTargetReleased) {
  StateOptions options{.num_slots = 2, .max_length = 100, .max_step_tokens = 4};
  options.budget_bytes = MoeStates::plan(small_config(), options).bytes * 6 / 10;
  MoeStates states(small_config(), options, Dtype::f32);
  ASSERT_TRUE(states.reserve(0, 90));
  EXPECT_FALSE(states.copy(0, 1));
  EXPECT_EQ(states.reserved(1), 0);
  EXPECT_EQ(states.reserved(0), 90);
  states.release(0);
  EXPECT_TRUE(states.reserve(1, 90)) << "the failed copy kept no page";
}

TEST(MoeStates, BadSlotsAndOptionsAreRefused) {
  MoeStates states(small_config(), {.num_slots = 2, .max_length = 100, .max_step_tokens = 4}, Dtype::f32);
  for (const int slot : {-1, 2}) {
    expect_error([&] { states.reserve(slot, 1); }, {concat("states: slot ", slot, " of 2")});
    expect_error([&] { states.release(slot); }, {concat("states: slot ", slot, " of 2")});
    expect_error([&] { states.copy(slot, 0); }, {concat("states: slot ", slot, " of 2")});
    expect_error([&] { states.copy(0, slot); }, {concat("states: slot ", slot, " of 2")});
  }
  expect_error([&] { states.copy(1, 1); }, {"states: slot 1 copied onto itself"});
  const auto plan = [](const StateOptions& o) { return [=] { MoeStates::plan(small_config(), o); }; };
  expect_error(plan({.num_slots = 0, .max_length = 1}), {"states: 0 slots"});
  expect_error(plan({.num_slots = 1, .max_length = 0}), {"0 positions"});
  expect_error(plan({.num_slots = 1, .max_length = 1, .max_step_tokens = 0}), {"0 tokens"});
  expect_error(plan({.num_slots = 1, .max_length = 1, .kv_dtype = Dtype::f16}), {"kv_dtype is float16"});
}

TEST(MoeStates, OneKindOfLayerNeedsOnePool) {
  MoeConfig c = small_config();
  const StateOptions options{.num_slots = 2, .max_length = 100, .max_step_tokens = 4};
  for (const bool sliding : {true, false}) {
    c.sliding.assign(3, sliding);
    const MoeStates::Plan plan = MoeStates::plan(c, options);
    EXPECT_EQ(sliding ? plan.full_pages : plan.ring_pages, 0);
    MoeStates states(c, options, Dtype::f32);
    states.touch();
    EXPECT_TRUE(states.reserve(0, 100) && states.reserve(1, 100) && states.can_ever_hold(100));
    EXPECT_FALSE(states.reserve(0, 101));
  }
}

TEST(MoeStates, TheRingHoldsTheWindowAndAStepAndNoMoreThanTheLength) {
  const MoeConfig c = small_config();
  const auto ring = [&](int64_t length, int64_t step) {
    return MoeStates::plan(c, {.num_slots = 1, .max_length = length, .max_step_tokens = step}).ring_blocks;
  };
  EXPECT_EQ(ring(1000, 13), 2);  // 19 + 13 = 32 positions
  EXPECT_EQ(ring(1000, 14), 3);
  EXPECT_EQ(ring(16, 500), 1);
}

TEST(MoeStates, BytesAreEstimatedWithinFivePercent) {
  MoeConfig c;
  c.vocab_size = 201088, c.hidden_size = 2880, c.intermediate_size = 2880, c.num_layers = 24,
  c.num_heads = 64;
  c.num_kv_heads = 8, c.head_dim = 64, c.num_experts = 32, c.top_k = 4, c.sliding_window = 128;
  for (int l = 0; l < 24; ++l) c.sliding.push_back(l % 2 == 0);
  for (const auto& [config, slots] : {std::pair{c, 4}, std::pair{small_config(), 3}})
    for (const Precision precision : {Precision::float32, Precision::bfloat16})
      for (const Dtype kv : {Dtype::f32, Dtype::bf16}) {
        ModelInfo info;
        info.precision = precision;
        const moe::MoeModel model(config, {}, info, nullptr);
        const StateOptions options{
            .num_slots = slots, .max_length = 700, .max_step_tokens = 64, .kv_dtype = kv};
        const auto states = model.make_states(options);
        // The logits are allocated by the first forward().
        const double actual = static_cast<double>(states->bytes() + int64_t{4} * slots * config.vocab_size);
        EXPECT_NEAR(static_cast<double>(model.state_bytes(options)) / actual, 1, 0.05)
            << name_of(precision) << kv;
      }
}

}  // namespace
}  // namespace trivium::testing
