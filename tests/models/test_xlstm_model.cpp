// xLSTM on the test device: the CPU's logits, bits that do not depend on how a sequence is cut or who decodes
// beside it, states of constant size, refused steps.
#include <cmath>
#include <map>

#include "models/model.h"
#include "models/upload.h"
#include "support/backend.h"
#include "support/compare.h"
#include "support/inputs.h"
#include "support/temp_folder.h"

namespace trivium::testing {
namespace {

// Odd head dimensions (11 and 23): tails in every product. 3 heads, 2 layers.
constexpr int64_t kVocab = 61, kHidden = 69, kQk = 33, kValues = 69, kHeads = 3, kInner = 80;
// Into the third chunk of 64 positions; on the emulator just there.
int64_t num_tokens() { return emulated() ? 132 : 200; }
const char* const kConfig =
    R"({"model_type": "xlstm", "vocab_size": 61, "hidden_size": 69, "num_hidden_layers": 2,
  "num_heads": 3, "qk_dim_factor": 0.479, "v_dim_factor": 1.0, "ffn_proj_factor": 1.1,
  "ffn_round_up_to_multiple_of": 16, "eos_token_id": 2})";

// `fused`: the same values in the matrices that weight_mode fused names.
void write_checkpoint(const TempFolder& folder, bool fused = false) {
  std::map<std::string, Tensor> t;
  uint64_t seed = 1;
  const auto add = [&](const std::string& name, const Shape& shape, double scale, double offset = 0) {
    Tensor x = random_normal(shape, seed++, scale);
    for (int64_t i = 0; i < x.numel(); ++i) x.data_as<float>()[i] += static_cast<float>(offset);
    t[name] = x.to(Dtype::bf16);
  };
  add("backbone.embeddings.weight", {kVocab, kHidden}, 1);
  for (int64_t l = 0; l < 2; ++l) {
    const std::string p = concat("backbone.blocks.", l, "."), m = p + "mlstm_layer.";
    add(p + "norm_mlstm.weight", {kHidden}, 0.1, 1);
    add(p + "norm_ffn.weight", {kHidden}, 0.1, 1);
    add(m + "q.weight", {kQk, kHidden}, 0.2);
    add(m + "k.weight", {kQk, kHidden}, 0.2);
    add(m + "v.weight", {kValues, kHidden}, 0.2);
    add(m + "ogate_preact.weight", {kValues, kHidden}, 0.2);
    for (const char* gate : {"igate_preact", "fgate_preact"}) {
      add(concat(m, gate, ".weight"), {kHeads, kHidden}, 0.2);
      add(concat(m, gate, ".bias"), {kHeads}, 2);
    }
    add(m + "multihead_norm.weight", {kValues}, 0.1, 1);
    add(m + "out_proj.weight", {kHidden, kValues}, 0.2);
    add(p + "ffn.proj_up_gate.weight", {kInner, kHidden}, 0.2);
    add(p + "ffn.proj_up.weight", {kInner, kHidden}, 0.2);
    add(p + "ffn.proj_down.weight", {kHidden, kInner}, 0.2);
  }
  add("backbone.out_norm.weight", {kHidden}, 0.1, 1);
  add("lm_head.weight", {kVocab, kHidden}, 0.3);
  std::string config = kConfig;
  if (fused) {
    config.insert(config.find('}'), ", \"weight_mode\": \"fused\"");
    const auto fuse = [&](const std::string& whole, const std::vector<std::string>& parts) {
      for (const std::string& part : parts) {
        t[whole] = t.contains(whole) ? stack_rows({t[whole], t[part]}) : t[part];
        t.erase(part);
      }
    };
    for (int64_t l = 0; l < 2; ++l) {
      const std::string p = concat("backbone.blocks.", l, "."), m = p + "mlstm_layer.";
      fuse(m + "qkv_opreact.weight",
           {m + "q.weight", m + "k.weight", m + "v.weight", m + "ogate_preact.weight"});
      for (const char* what : {".weight", ".bias"})
        fuse(concat(m, "ifgate_preact", what),
             {concat(m, "igate_preact", what), concat(m, "fgate_preact", what)});
      fuse(p + "ffn.proj_up_gate_z.weight", {p + "ffn.proj_up_gate.weight", p + "ffn.proj_up.weight"});
    }
  }
  folder.write("config.json", config);
  io::save_safetensors(folder.file("model.safetensors"), {t.begin(), t.end()});
}

class XlstmModel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    write_checkpoint(*folder_);
    Random random(3);
    for (int64_t i = 0; i < num_tokens(); ++i)
      tokens_.push_back(static_cast<int32_t>(random.integer(0, kVocab - 1)));
  }
  static void TearDownTestSuite() { folder_.reset(), tokens_.clear(); }

  static std::shared_ptr<Model> load(Precision precision = Precision::float32,
                                     Device device = test_device()) {
    LoadOptions options;
    options.precision = precision;
    options.device = device;
    return load_model(folder_->file(""), options);
  }
  static std::unique_ptr<SequenceStates> states_of(const Model& model, int slots = 3, int64_t budget = 0) {
    return model.make_states({.num_slots = slots,
                              .max_length = 4096,
                              .max_step_tokens = 256,
                              .kv_dtype = Dtype::f32,
                              .budget_bytes = budget});
  }
  // Logits of tokens [start, start + count) as the next tokens of `slot`.
  static std::vector<float> feed(Model& model, SequenceStates& states, int slot, int64_t start,
                                 int64_t count) {
    EXPECT_TRUE(states.reserve(slot, start + count));
    const auto part =
        std::span<const int32_t>(tokens_).subspan(static_cast<size_t>(start), static_cast<size_t>(count));
    const std::vector<Segment> segments = {{slot, start, count, Segment::Logits::all}};
    return values_of<float>(model.forward({part, segments}, states));
  }

  static std::unique_ptr<TempFolder> folder_;
  static std::vector<int32_t> tokens_;
};
std::unique_ptr<TempFolder> XlstmModel::folder_;
std::vector<int32_t> XlstmModel::tokens_;

TEST_F(XlstmModel, AnyCutGivesTheSameBits) {
  for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
    const auto model = load(precision);
    const auto states = states_of(*model);
    const auto whole = feed(*model, *states, 0, 0, num_tokens());
    Random random(7);
    // The emulator leaves out the cut into single tokens: the kernel's own test has it.
    for (int round = emulated() ? 1 : 0; round < (emulated() ? 2 : 12); ++round) {
      const int64_t most = round == 0 ? 1 : random.integer(2, 90);
      std::vector<float> pieces;
      for (int64_t start = 0; start < num_tokens();) {
        const int64_t count = std::min(random.integer(1, most), num_tokens() - start);
        const auto part = feed(*model, *states, 1, start, count);
        pieces.insert(pieces.end(), part.begin(), part.end());
        start += count;
      }
      expect_same_bits(pieces, whole, concat("pieces of up to ", most));
      states->release(1);
    }
  }
}

TEST_F(XlstmModel, LogitsAreThoseOfTheCpu) {
  const auto cpu = load(Precision::float32, Device{}), model = load();
  const auto want = feed(*cpu, *states_of(*cpu), 0, 0, num_tokens());
  const auto states = states_of(*model);
  const int64_t prompt = emulated() ? 125 : 70;
  auto got = feed(*model, *states, 1, 0, prompt);
  for (int64_t at = prompt; at < num_tokens(); ++at) {
    const auto row = feed(*model, *states, 1, at, 1);
    got.insert(got.end(), row.begin(), row.end());
  }
  ASSERT_EQ(got.size(), want.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    size += double{want[i]} * want[i];
  }
  EXPECT_LE(std::sqrt(error / size), 4e-6);
}

// Five sequences in three padded sizes: 1, 2 and then 8 tokens a step, several of each.
TEST_F(XlstmModel, ADecodeStepsBitsDoNotDependOnHowManySequencesDecode) {
  const auto model = load(Precision::bfloat16);
  const auto alone = states_of(*model);
  const auto want = feed(*model, *alone, 0, 0, 72);
  const auto states = states_of(*model, 5);
  for (int slot = 0; slot < 5; ++slot) ASSERT_TRUE(states->reserve(slot, 100));
  std::vector<float> got = feed(*model, *states, 0, 0, 60);
  for (int64_t at = 60; at < 72; ++at) {
    const int count = at < 64 ? 1 : at < 68 ? 2 : 5;
    std::vector<int32_t> ids;
    std::vector<Segment> segments;
    for (int slot = 0; slot < count; ++slot) {
      // Slot 0 is the sequence; the others are somewhere else in texts of their own.
      ids.push_back(slot == 0 ? tokens_[static_cast<size_t>(at)]
                              : static_cast<int32_t>((7 * at + slot) % kVocab));
      const int64_t begun = slot == 0 ? 0 : slot == 1 ? 64 : 68;
      segments.push_back({slot, at - begun, 1, Segment::Logits::last});
    }
    const auto rows = values_of<float>(model->forward({ids, segments}, *states));
    ASSERT_EQ(rows.size(), static_cast<size_t>(count * kVocab));
    got.insert(got.end(), rows.begin(), rows.begin() + kVocab);
  }
  expect_same_bits(got, want, "slot 0");
}

TEST_F(XlstmModel, FusedMatricesGiveTheSameLogits) {
  const TempFolder folder;
  write_checkpoint(folder, true);
  LoadOptions options;
  options.precision = Precision::float32;
  options.device = test_device();
  const auto single = load(), fused = load_model(folder.file(""), options);
  expect_same_bits(feed(*fused, *states_of(*fused), 0, 0, 20), feed(*single, *states_of(*single), 0, 0, 20),
                   "fused");
}

TEST_F(XlstmModel, AFailedStepLeavesTheStatesUsable) {
  const auto model = load();
  const auto states = states_of(*model);
  const auto want = feed(*model, *states, 0, 0, 5);
  CancelToken cancel;
  cancel.cancel();
  const std::vector<Segment> segments = {{1, 0, 5, Segment::Logits::last}};
  ASSERT_TRUE(states->reserve(1, 5));
  EXPECT_THROW(model->forward({std::span<const int32_t>(tokens_).first(5), segments}, *states, &cancel),
               Cancelled);
  states->release(1);
  expect_same_bits(feed(*model, *states, 1, 0, 5), want, "after a cancelled step");
}

TEST_F(XlstmModel, WithoutWeightsItPlansMemoryAndRefusesToRun) {
  LoadOptions options;
  options.device = test_device();
  options.load_weights = false;
  const auto planned = load_model(folder_->file(""), options), model = load(Precision::automatic);
  const StateOptions some{.num_slots = 3, .max_length = 100, .max_step_tokens = 8};
  EXPECT_EQ(planned->state_bytes(some), model->state_bytes(some));
  const auto states = states_of(*planned);
  ASSERT_TRUE(states->reserve(0, 1));
  expect_error(
      [&] {
        planned->forward({{tokens_.data(), 1}, std::vector<Segment>{{0, 0, 1}}}, *states);
      },
      {"without weights"});
}

TEST_F(XlstmModel, SequencesOfABatchDoNotTouchEachOther) {
  const auto model = load();
  const auto states = states_of(*model);
  const auto alone = feed(*model, *states, 0, 0, 70);
  states->release(0);
  feed(*model, *states, 2, 0, 65);
  ASSERT_TRUE(states->reserve(0, 70) && states->reserve(2, 66));
  std::vector<int32_t> tokens(tokens_.begin(), tokens_.begin() + 70);
  tokens.push_back(tokens_[65]);
  const std::vector<Segment> segments = {{0, 0, 70, Segment::Logits::all}, {2, 65, 1, Segment::Logits::none}};
  expect_same_bits(values_of<float>(model->forward({tokens, segments}, *states)), alone,
                   "beside a decode step");
}

TEST_F(XlstmModel, ACopiedSlotGoesOnAlone) {
  const auto model = load();
  const auto states = states_of(*model);
  const auto whole = feed(*model, *states, 0, 0, num_tokens());
  feed(*model, *states, 1, 0, 77);
  ASSERT_TRUE(states->copy(1, 2));
  const size_t row = kVocab;
  for (const int slot : {1, 2}) {
    const auto rest = feed(*model, *states, slot, 77, num_tokens() - 77);
    expect_same_bits(rest, std::span(whole).subspan(77 * row), concat("slot ", slot));
  }
}

TEST_F(XlstmModel, StateSizeDoesNotDependOnTheLength) {
  const auto model = load();
  const StateOptions small{.num_slots = 2, .max_length = 16, .max_step_tokens = 8};
  StateOptions large = small;
  large.max_length = 1 << 20;
  EXPECT_EQ(model->state_bytes(small), model->state_bytes(large));
  EXPECT_GE(model->state_bytes(small), model->make_states(small)->bytes());
}

TEST_F(XlstmModel, ABudgetMeansFewerSequencesAtOnce) {
  const auto model = load();
  const StateOptions one{.num_slots = 1, .max_length = 100, .max_step_tokens = 8};
  StateOptions two = one;
  two.num_slots = 2;
  const int64_t block = model->state_bytes(two) - model->state_bytes(one);
  const auto states = states_of(*model, 3, 2 * block);
  EXPECT_TRUE(states->reserve(0, 10));
  EXPECT_TRUE(states->reserve(1, 10));
  EXPECT_FALSE(states->reserve(2, 10));
  EXPECT_TRUE(states->can_ever_hold(4096));
  EXPECT_FALSE(states->can_ever_hold(4097));
  states->release(0);
  EXPECT_TRUE(states->reserve(2, 10));
}

TEST_F(XlstmModel, WrongStepsAreRefused) {
  const auto model = load();
  const auto states = states_of(*model);
  feed(*model, *states, 0, 0, 5);
  ASSERT_TRUE(states->reserve(0, 20));
  const auto run = [&](const std::vector<int32_t>& tokens, const Segment& segment) {
    return [&, tokens, segment] { model->forward({tokens, std::vector<Segment>{segment}}, *states); };
  };
  expect_error(run({1}, {0, 4, 1, Segment::Logits::last}), {"slot 0", "5 tokens", "starts at 4"});
  expect_error(run({1}, {0, 7, 1, Segment::Logits::last}), {"slot 0", "starts at 7"});
  expect_error(run({1}, {3, 0, 1, Segment::Logits::last}), {"slot 3 of 3"});
  expect_error(run({1}, {1, 0, 1, Segment::Logits::last}), {"slot 1", "room for 0"});
  expect_error(run({61}, {0, 5, 1, Segment::Logits::last}), {"token 0 is 61", "61"});
  expect_error(run({1, 2}, {0, 5, 1, Segment::Logits::last}), {"2 tokens", "segments of 1"});
  EXPECT_EQ(feed(*model, *states, 0, 5, 3).size(), static_cast<size_t>(3 * kVocab));
}

}  // namespace
}  // namespace trivium::testing
