// A model on the test device against the same model on the CPU.
#include "getp/session.h"
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

// Logits of all positions, one decode step each after `prompt` of them.
std::vector<float> decoded_logits(Model& model, std::span<const int32_t> tokens, int64_t prompt) {
  const auto states = model.make_states({.num_slots = 3, .max_length = 64, .max_step_tokens = 40});
  const auto count = static_cast<int64_t>(tokens.size());
  EXPECT_TRUE(states->reserve(1, count));
  std::vector<float> all;
  for (int64_t at = 0; at < count;) {
    const int64_t n = at == 0 ? prompt : 1;
    const auto rows =
        values_of<float>(model.forward({tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(n)),
                                        std::vector<Segment>{{1, at, n, Segment::Logits::all}}},
                                       *states));
    all.insert(all.end(), rows.begin(), rows.end());
    at += n;
  }
  return all;
}

double relative_error(std::span<const float> got, std::span<const float> want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    size += double{want[i]} * want[i];
  }
  return std::sqrt(error / size);
}

TEST(DeviceModel, LogitsAreThoseOfTheCpu) {
  const TinyCheckpoint checkpoint;
  const auto tokens = random_tokens(30, 1);
  const auto want = decoded_logits(*checkpoint.load(Precision::float32, Device{}), tokens, 20);
  const auto got = decoded_logits(*checkpoint.load(Precision::float32), tokens, 20);
  ASSERT_EQ(got.size(), want.size());
  EXPECT_LE(relative_error(got, want), 2e-6);
}

TEST(DeviceModel, ADecodeStepsBitsDoNotDependOnHowManySequencesDecode) {
  const TinyCheckpoint checkpoint;
  const auto model = checkpoint.load(Precision::bfloat16);
  const auto tokens = random_tokens(12, 2);
  const auto want = decoded_logits(*model, tokens, 1);
  // Five sequences in three padded sizes: 1, 2 and then 8 tokens a step, several of each.
  const auto states = model->make_states({.num_slots = 5, .max_length = 64, .max_step_tokens = 8});
  for (int slot = 0; slot < 5; ++slot) ASSERT_TRUE(states->reserve(slot, 16));
  std::vector<float> got;
  for (int64_t at = 0; at < 12; ++at) {
    const int count = at < 4 ? 1 : at < 8 ? 2 : 5;
    std::vector<int32_t> ids;
    std::vector<Segment> segments;
    for (int slot = 0; slot < count; ++slot) {
      // Slot 0 is the sequence; the others are somewhere else in texts of their own.
      ids.push_back(slot == 0 ? tokens[static_cast<size_t>(at)]
                              : static_cast<int32_t>((7 * at + slot) % kVocab));
      const int64_t begun = slot == 0 ? 0 : slot == 1 ? 4 : 8;
      segments.push_back({slot, at - begun, 1, Segment::Logits::last});
    }
    const auto rows = values_of<float>(model->forward({ids, segments}, *states));
    ASSERT_EQ(rows.size(), static_cast<size_t>(count * kVocab));
    got.insert(got.end(), rows.begin(), rows.begin() + kVocab);
  }
  expect_same_bits(got, want, "slot 0");
}

TEST(DeviceModel, DenseExpertsAndOtherLayoutsRunToo) {
  Tensors dense = tiny_tensors();
  const int64_t V = kVocab;
  std::string config = kTinyConfig;
  for (int64_t l = 0; l < kLayers; ++l)
    for (const char* name : {"gate_up_proj", "down_proj"}) {
      const std::string p = concat("model.layers.", l, ".mlp.experts.", name);
      const bool up = std::string(name) == "gate_up_proj";
      const int64_t in = up ? kHidden : kInter, out = up ? 2 * kInter : kHidden;
      dense.erase(p + "_blocks");
      dense.erase(p + "_scales");
      dense[p] = random_normal({kExperts, in, out}, 40 + static_cast<uint64_t>(l), 0.2).to(Dtype::bf16);
    }
  config = config.substr(0, config.find(",\n  \"quantization_config\"")) + "}";
  const TinyCheckpoint checkpoint(dense, config);
  const auto tokens = random_tokens(9, 3);
  const auto want = decoded_logits(*checkpoint.load(Precision::float32, Device{}), tokens, 5);
  const auto got = decoded_logits(*checkpoint.load(Precision::float32), tokens, 5);
  ASSERT_EQ(got.size(), static_cast<size_t>(9 * V));
  EXPECT_LE(relative_error(got, want), 2e-6);
}

TEST(DeviceModel, AFailedStepLeavesTheStatesUsable) {
  const TinyCheckpoint checkpoint;
  const auto model = checkpoint.load(Precision::float32);
  const auto states = model->make_states({.num_slots = 2, .max_length = 64, .max_step_tokens = 8});
  ASSERT_TRUE(states->reserve(0, 8));
  const std::vector<int32_t> tokens{1, 2, 3};
  const std::vector<Segment> segments{{0, 0, 3, Segment::Logits::last}};
  CancelToken cancel;
  cancel.cancel();
  EXPECT_THROW(model->forward({tokens, segments}, *states, &cancel), Cancelled);
  states->release(0);
  ASSERT_TRUE(states->reserve(0, 8));
  EXPECT_EQ(values_of<float>(model->forward({tokens, segments}, *states)).size(),
            static_cast<size_t>(kVocab));
}

std::vector<std::vector<int32_t>> greedy_tokens(const std::string& folder, Device device, int64_t count) {
  LoadOptions options;
  options.device = device;
  options.precision = Precision::float32;
  getp::Engine engine(load_model(folder, options),
                      {.batch_size = 2, .max_step_tokens = 0, .kv_dtype = {}, .budget_bytes = 0});
  std::vector<getp::Request> requests;
  for (const char* prompt : {"Return True if the", "Open a", "Get the current"}) {
    requests.push_back(getp::text_request(engine.model(), prompt));
    requests.back().max_tokens = count;
    requests.back().ignore_eos = true;
  }
  std::vector<std::vector<int32_t>> tokens;
  for (const getp::Result& result : engine.generate(requests)) tokens.push_back(result.tokens);
  return tokens;
}

// A shipped model through scheduler, states and sampling: what a user sees must not depend on the device.
void expect_the_cpus_tokens(const char* family, int64_t count) {
  const std::string folder = concat(TRIVIUM_DEMO, family);
  const auto want = greedy_tokens(folder, Device{}, count);
  ASSERT_EQ(want.at(0).size(), static_cast<size_t>(count));
  EXPECT_EQ(greedy_tokens(folder, test_device(), count), want);
}

TEST(DeviceModel, TheDemoModelGeneratesTheCpusGreedyTokens) {
  expect_the_cpus_tokens("", emulated() ? 5 : 40);
}
TEST(DeviceModel, TheXlstmDemoGeneratesTheCpusGreedyTokens) {
  expect_the_cpus_tokens("_xlstm", emulated() ? 3 : 40);
}
TEST(DeviceModel, TheLutDemoGeneratesTheCpusGreedyTokens) { expect_the_cpus_tokens("_lut", 40); }

}  // namespace
}  // namespace trivium::testing
