// How many sequences a memory budget is planned for, and the refusal when not even one fits.
#include <gtest/gtest.h>

#include "fake_model.h"
#include "getp/memory.h"

namespace trivium::getp {
namespace {

constexpr int64_t kLength = 400, kSlotBytes = 100 * 1024;  // FakeModel: 1 KiB for 4 positions

MemoryPlan plan(int batch_size, int64_t budget) {
  const trivium::testing::FakeModel model;
  return plan_memory(model, {.batch_size = batch_size, .max_length = kLength, .budget_bytes = budget});
}

TEST(MemoryPlan, AnAutomaticBatchShrinksWithTheBudget) {
  EXPECT_EQ(plan(0, 100 * kSlotBytes).states.num_slots, auto_batch(Device{}));
  EXPECT_LT(plan(0, 8 * kSlotBytes).states.num_slots, auto_batch(Device{}));
}

TEST(MemoryPlan, ABatchThatWasAskedForSharesWhatThereIs) {
  const MemoryPlan roomy = plan(8, 8 * kSlotBytes);
  EXPECT_EQ(roomy.planned_bytes, 8 * kSlotBytes);
  EXPECT_EQ(roomy.states.budget_bytes, 0);
  const MemoryPlan tight = plan(8, 3 * kSlotBytes);
  EXPECT_EQ(tight.states.num_slots, 8);
  EXPECT_EQ(tight.wanted_bytes, 8 * kSlotBytes);
  EXPECT_EQ(tight.states.budget_bytes, 3 * kSlotBytes);
}

// States whose size is that of the largest step.
class StepModel : public trivium::testing::FakeModel {
 public:
  int64_t state_bytes(const StateOptions& options) const override { return options.max_step_tokens; }
};

TEST(MemoryPlan, CountsADecodeTokenOfEverySequenceBesideThePrompts) {
  const MemoryPlan plan =
      plan_memory(StepModel(), {.batch_size = 70, .max_length = kLength, .max_step_tokens = 9});
  EXPECT_EQ(plan.planned_bytes, 9 + 70);
  EXPECT_EQ(plan.states.max_step_tokens, 9);  // the scheduler adds the others
}

TEST(MemoryPlan, NoBatchIsLargerThanTheRequests) {
  const trivium::testing::FakeModel model;
  for (const int batch_size : {0, 2, 1000})
    EXPECT_EQ(plan_memory(model, {.batch_size = batch_size, .max_requests = 5, .max_length = kLength})
                  .states.num_slots,
              batch_size == 2 ? 2 : 5);
}

TEST(MemoryPlan, OneSequenceThatDoesNotFitIsRefusedWithTheNumbers) {
  EXPECT_EQ(plan(1, kSlotBytes).planned_bytes, kSlotBytes);
  try {
    plan(1, kSlotBytes - 1);
    FAIL() << "accepted";
  } catch (const OutOfMemory& error) {
    const std::string text = error.what();
    for (const char* part : {"400 positions", "100.0 KiB", "cpu", "--steps"})
      EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

}  // namespace
}  // namespace trivium::getp
