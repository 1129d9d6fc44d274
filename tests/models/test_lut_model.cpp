// The LUT language model: states, segments, batches, devices. Its arithmetic is held against the oracle in
// tests/python/test_lut_model.py.
#include "models/lut/model.h"

#include "ops/lut_support.h"
#include "support/temp_folder.h"

namespace trivium::testing {
namespace {

constexpr int64_t kVocab = 23, kContext = 6;

// A folder as trivium.lut.LUTTransformer writes it, with random weights.
void write_folder(const TempFolder& folder) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto block = [&](const std::string& name, int64_t tables, int64_t pairs, int64_t cells,
                         int64_t outputs, uint64_t seed) {
    tensors.emplace_back(name + ".anchors", random_anchors(tables, pairs, 8, seed));
    tensors.emplace_back(name + ".weight", random_normal({tables, cells, outputs}, seed + 1));
  };
  tensors.emplace_back("embedding", random_normal({kVocab, 8}, 1));
  for (int l = 0; l < 2; ++l) {
    const std::string layer = concat("layers.", l, '.');
    block(layer + "attention", 6, 2, 32, 8, 10 + static_cast<uint64_t>(l));
    tensors.emplace_back(layer + "attention.positional_embeddings", random_normal({kContext - 1, 6, 1}, 30));
    block(layer + "ffn", 3, 3, 8, 8, 20 + static_cast<uint64_t>(l));
  }
  block("unembedder", 3, 3, 8, kVocab, 40);
  io::save_safetensors(folder.file("model.safetensors"), tensors);
  folder.write("config.json",
               R"({"model_type": "lut_transformer", "vocab_size": 23, "embedding_dim": 8, "context_size": 6,
                   "positional_dim": 1, "num_layers": 2, "num_heads": 2, "n_detectors": 3,
                   "n_anchors_per_detector": 3, "n_anchors_per_detector_attention": 2, "eos_token_id": 22})");
}

std::shared_ptr<Model> load(const TempFolder& folder, Device device) {
  LoadOptions options;
  options.device = device;
  return load_model(folder.file("").substr(0, folder.file("").size() - 1), options);
}

std::vector<int32_t> tokens(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<int32_t>(random.integer(0, kVocab - 1)));
  return out;
}

std::vector<float> run(Model& model, SequenceStates& states, const std::vector<int32_t>& ids,
                       const std::vector<Segment>& segments) {
  return values_of<float>(model.forward({ids, segments}, states));
}

// All logits of one sequence in one step, on the CPU.
std::vector<float> reference(const TempFolder& folder, const std::vector<int32_t>& ids) {
  const auto model = load(folder, Device{});
  const auto count = static_cast<int64_t>(ids.size());
  const auto states = model->make_states({.num_slots = 1, .max_length = count, .max_step_tokens = count});
  states->reserve(0, count);
  return run(*model, *states, ids, {{0, 0, count, Segment::Logits::all}});
}

TEST(LutModel, LogitsDoNotDependOnStepsBatchesOrDevice) {
  const TempFolder folder;
  write_folder(folder);
  const auto a = tokens(19, 1), b = tokens(17, 2);
  const auto want_a = reference(folder, a), want_b = reference(folder, b);
  const auto model = load(folder, test_device());
  const auto states = model->make_states({.num_slots = 3, .max_length = 32, .max_step_tokens = 9});
  ASSERT_TRUE(states->reserve(2, 19) && states->reserve(0, 17));
  std::vector<float> got_a, got_b;
  const int64_t steps[][2] = {{1, 8}, {5, 1}, {4, 5}, {8, 1}, {1, 2}};
  int64_t done[2] = {};
  for (const auto& step : steps) {
    std::vector<int32_t> ids(a.begin() + done[0], a.begin() + done[0] + step[0]);
    ids.insert(ids.end(), b.begin() + done[1], b.begin() + done[1] + step[1]);
    const auto logits =
        run(*model, *states, ids,
            {{2, done[0], step[0], Segment::Logits::all}, {0, done[1], step[1], Segment::Logits::all}});
    got_a.insert(got_a.end(), logits.begin(), logits.begin() + step[0] * kVocab);
    got_b.insert(got_b.end(), logits.begin() + step[0] * kVocab, logits.end());
    done[0] += step[0], done[1] += step[1];
  }
  expect_same_bits(got_a, want_a, "first sequence");
  expect_same_bits(got_b, want_b, "second sequence");
}

// Five sequences in three padded sizes: 1, 2 and then 8 tokens a step, several of each.
TEST(LutModel, ADecodeStepsBitsDoNotDependOnHowManySequencesDecode) {
  const TempFolder folder;
  write_folder(folder);
  const auto a = tokens(15, 4);
  const auto want = reference(folder, a);
  const auto model = load(folder, test_device());
  const auto states = model->make_states({.num_slots = 5, .max_length = 32, .max_step_tokens = 8});
  for (int slot = 0; slot < 5; ++slot) ASSERT_TRUE(states->reserve(slot, 16));
  std::vector<float> got;
  for (int64_t at = 0; at < 15; ++at) {
    const int count = at < 5 ? 1 : at < 10 ? 2 : 5;
    std::vector<int32_t> ids;
    std::vector<Segment> segments;
    for (int slot = 0; slot < count; ++slot) {
      // Slot 0 is the sequence; the others are somewhere else in texts of their own.
      ids.push_back(slot == 0 ? a[static_cast<size_t>(at)] : static_cast<int32_t>((7 * at + slot) % kVocab));
      segments.push_back({slot, at - (slot == 0 ? 0 : slot == 1 ? 5 : 10), 1, Segment::Logits::last});
    }
    const auto rows = run(*model, *states, ids, segments);
    ASSERT_EQ(rows.size(), static_cast<size_t>(count * kVocab));
    got.insert(got.end(), rows.begin(), rows.begin() + kVocab);
  }
  expect_same_bits(got, want, "slot 0");
}

TEST(LutModel, WithoutWeightsItPlansMemoryAndRefusesToRun) {
  const TempFolder folder;
  write_folder(folder);
  LoadOptions options;
  options.device = test_device();
  const auto planned = describe_model(folder.file(""), options), model = load(folder, test_device());
  const StateOptions some{.num_slots = 3, .max_length = 100, .max_step_tokens = 8};
  EXPECT_EQ(planned->state_bytes(some), model->state_bytes(some));
  const auto states = planned->make_states(some);
  ASSERT_TRUE(states->reserve(0, 1));
  expect_error([&] { run(*planned, *states, {1}, {{0, 0, 1}}); }, {"without weights"});
}

TEST(LutModel, ACopiedSlotGoesOnAlone) {
  const TempFolder folder;
  write_folder(folder);
  const auto a = tokens(12, 1), b = tokens(4, 2);
  const auto model = load(folder, test_device());
  const auto states = model->make_states({.num_slots = 2, .max_length = 32, .max_step_tokens = 16});
  ASSERT_TRUE(states->reserve(0, 16));
  run(*model, *states, a, {{0, 0, 12, Segment::Logits::none}});
  ASSERT_TRUE(states->copy(0, 1));
  const auto first = run(*model, *states, b, {{1, 12, 4, Segment::Logits::last}});
  run(*model, *states, tokens(4, 3), {{0, 12, 4, Segment::Logits::last}});
  auto all = a;
  all.insert(all.end(), b.begin(), b.end());
  const auto want = reference(folder, all);
  expect_same_bits(first, std::span(want).last(kVocab), "the copy");
}

TEST(LutModel, SizesBeyondAllLimitsAreListedAndNotComputedWith) {
  for (const char* value : {"9223372036854775807", "-9223372036854775808"}) {
    const TempFolder folder;
    write_folder(folder);
    folder.write("config.json",
                 concat(R"({"model_type": "lut_transformer", "vocab_size": 23, "embedding_dim": 8,
                     "context_size": 6, "num_layers": 2, "num_heads": 2, "n_detectors": 3, "positional_dim": )",
                        value, R"(, "n_anchors_per_detector": )", value,
                        R"(, "n_anchors_per_detector_attention": )", value, "}"));
    const std::string why = error_of([&] { load(folder, Device{}); });
    for (const char* key : {"positional_dim", "n_anchors_per_detector", "n_anchors_per_detector_attention"})
      EXPECT_NE(why.find(concat('"', key, "\" is ", value, ", expected ")), std::string::npos) << why;
    EXPECT_EQ(why.find("attention addresses"), std::string::npos) << why;
  }
}

TEST(LutModel, BadBatchesAreExplained) {
  const TempFolder folder;
  write_folder(folder);
  const auto model = load(folder, test_device());
  const auto states = model->make_states({.num_slots = 2, .max_length = 8, .max_step_tokens = 4});
  ASSERT_TRUE(states->reserve(0, 8));
  EXPECT_FALSE(states->reserve(0, 9));
  const auto call = [&](std::vector<int32_t> ids, std::vector<Segment> segments) {
    return [&, ids, segments] { model->forward({ids, segments}, *states); };
  };
  expect_error(call({1}, {{2, 0, 1}}), {"slot 2 of 2"});
  expect_error(call({1}, {{1, 0, 1}}), {"slot 1 has room for 0"});
  expect_error(call({1, 2}, {{0, 0, 1}, {0, 1, 1}}), {"slot 0 appears twice"});
  expect_error(call({1, 2}, {{0, 0, 1}}), {"2 tokens, but segments of 1"});
  expect_error(call({1, 2, 3, 4, 5}, {{0, 0, 5}}), {"5 tokens, at most 4"});
  expect_error(call({23}, {{0, 0, 1}}), {"token 0 is 23", "23"});
  expect_error(call({1}, {{0, -1, 1}}), {"slot 0"});
}

TEST(LutModel, StatesReportTheirMemory) {
  const TempFolder folder;
  write_folder(folder);
  const auto model = load(folder, test_device());
  const StateOptions options{.num_slots = 3, .max_length = 1000, .max_step_tokens = 7};
  const auto states = model->make_states(options);
  EXPECT_GT(states->bytes(), 2 * 3 * (kContext - 1 + 7) * 6 * 4);
  EXPECT_LE(states->bytes(), model->state_bytes(options));
  EXPECT_EQ(model->info().stop_ids, std::vector<int32_t>{22});
}

}  // namespace
}  // namespace trivium::testing
