// A model with real states, rings and pages, that runs out of memory: what is thrown away and computed again
// must not change a token.
#include <map>

#include "getp/scheduler.h"
#include "models/tiny_checkpoint.h"

namespace trivium::testing {
namespace {

using getp::Request;
using getp::Result;

std::vector<Request> requests_of(float temperature) {
  std::vector<Request> requests;
  for (int i = 0; i < 14; ++i) {
    Request r;
    for (int k = 0; k < 1 + 5 * i % 8; ++k) r.prompt.push_back((11 + 31 * i + 7 * k * k) % kVocab);
    r.max_tokens = 50 + i % 6;  // longer than the room that is asked for at the start
    r.ignore_eos = true;
    r.sampling = {.temperature = temperature, .top_p = 0.95f, .top_k = 0, .min_p = 0, .seed = uint64_t(i)};
    requests.push_back(r);
  }
  return requests;
}

std::map<int64_t, std::vector<int32_t>> run(const std::shared_ptr<Model>& model, StateOptions options,
                                            double share, float temperature, int64_t* preemptions = nullptr) {
  options.max_length = 64;
  options.kv_dtype = model->default_kv_dtype();
  options.budget_bytes = static_cast<int64_t>(share * static_cast<double>(model->state_bytes(options)));
  std::map<int64_t, std::vector<int32_t>> tokens;
  getp::Scheduler scheduler(model, options, {.on_piece = {}, .on_result = [&](int64_t id, Result result) {
                                               EXPECT_EQ(result.error, "");
                                               tokens[id] = std::move(result.tokens);
                                             }});
  const auto requests = requests_of(temperature);
  for (size_t i = 0; i < requests.size(); ++i) scheduler.submit(static_cast<int64_t>(i), requests[i]);
  while (!scheduler.idle()) scheduler.step();
  if (preemptions) *preemptions = scheduler.stats().preemptions;
  return tokens;
}

TEST(Preemption, ChangesNoTokenOfAMixtureOfExperts) {
  const TinyCheckpoint checkpoint;
  for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
    const auto model = checkpoint.load(precision, Device{});
    for (const float temperature : {0.0f, 1.0f}) {
      SCOPED_TRACE(concat(name_of(precision), " at temperature ", temperature));
      const auto alone = run(model, {.num_slots = 1, .max_step_tokens = 64}, 0, temperature);
      ASSERT_EQ(alone.size(), 14u);
      for (const double share : {0.3, 0.4, 0.5}) {
        int64_t preemptions = 0;
        const auto crowded =
            run(model, {.num_slots = 6, .max_step_tokens = 64}, share, temperature, &preemptions);
        EXPECT_GT(preemptions, 0) << "the sequences should not fit in a share of " << share;
        EXPECT_EQ(crowded, alone) << "in a share of " << share;
      }
    }
  }
}

}  // namespace
}  // namespace trivium::testing
