// Segment::Logits::maximum: the rows a greedy choice needs, at vocabulary sizes where work is saved.
#include <cstring>
#include <limits>

#include "models/tiny_checkpoint.h"

namespace trivium::testing {
namespace {

constexpr int64_t kWide = 140000;  // an unembedding of 8.5 MiB
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TinyCheckpoint wide_checkpoint() {
  Tensors tensors = tiny_tensors();
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"})
    tensors[name] = random_normal({kWide, kHidden}, 77, 0.5).to(Dtype::bf16);
  std::string config = kTinyConfig;
  config.replace(config.find("97"), 2, std::to_string(kWide));
  return TinyCheckpoint(tensors, config);
}

// The logits after a prompt of three tokens in each of `count` slots.
Tensor decode(Model& model, int count, Segment::Logits wanted) {
  const auto states = model.make_states({.num_slots = 8, .max_length = 64, .max_step_tokens = 32});
  std::vector<int32_t> prompts, next;
  std::vector<Segment> first, second;
  for (int slot = 0; slot < count; ++slot) {
    EXPECT_TRUE(states->reserve(slot, 4));
    for (const int32_t token : {5, 70000, 139999}) prompts.push_back((token + 31 * slot) % kWide);
    next.push_back(1000 * (slot + 1));
    first.push_back({slot, 0, 3, Segment::Logits::none});
    second.push_back({slot, 3, 1, wanted});
  }
  model.forward({prompts, first}, *states);
  return host_tensor<float>({count, kWide}, values_of<float>(model.forward({next, second}, *states)));
}

TEST(GreedyLogits, HaveTheMaximaAndTheBitsOfAllLogits) {
  const TinyCheckpoint checkpoint = wide_checkpoint();
  for (const Precision precision : {Precision::float32, Precision::bfloat16}) {
    const auto model = checkpoint.load(precision);
    for (const int count : {1, 2, 4, 5}) {
      const Tensor all = decode(*model, count, Segment::Logits::last);
      const Tensor greedy = decode(*model, count, Segment::Logits::maximum);
      int64_t left_out = 0;
      for (int row = 0; row < count; ++row) {
        const float *a = greedy.data_as<float>() + row * kWide, *b = all.data_as<float>() + row * kWide;
        const float best = *std::max_element(b, b + kWide);
        for (int64_t i = 0; i < kWide; ++i) {
          const bool out = a[i] == -kInfinity && b[i] < best;
          ASSERT_TRUE(out || std::memcmp(a + i, b + i, sizeof(float)) == 0) << "row " << row << ", id " << i;
          left_out += out;
        }
      }
      // Work is saved on the CPU, in small batches.
      const bool saves = test_device().kind == DeviceKind::cpu && count <= 4;
      EXPECT_EQ(left_out > count * kWide * 9 / 10, saves) << count << ", left out " << left_out;
    }
  }
}

TEST(GreedyLogits, OneRowThatWantsAllLogitsGetsThem) {
  const auto model = wide_checkpoint().load(Precision::float32);
  const auto states = model->make_states({.num_slots = 2, .max_length = 64, .max_step_tokens = 32});
  ASSERT_TRUE(states->reserve(0, 1) && states->reserve(1, 1));
  const std::vector<int32_t> tokens{1, 2};
  const std::vector<Segment> segments{{0, 0, 1, Segment::Logits::maximum}, {1, 0, 1, Segment::Logits::last}};
  for (const float logit : values_of<float>(model->forward({tokens, segments}, *states)))
    ASSERT_NE(logit, -kInfinity);
}

}  // namespace
}  // namespace trivium::testing
