// Routing, the permutation by expert and the weighted sum at the sizes of real models, against plain host
// code.
#include <algorithm>
#include <numeric>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

TEST(RoutingSizes, TopKOfManyExpertsWithTiesIsTheStableOrder) {
  for (const int64_t num_experts : {1, 31, 32, 33, 64, 65, 128, 256, 300})
    for (const int64_t top_k : {1, 4, 8, 70}) {
      if (top_k > num_experts) continue;
      const int64_t tokens = 5;
      const Tensor logits = random_integers({tokens, num_experts}, static_cast<uint64_t>(num_experts), -9, 9);
      const ops::Routing r = ops::moe_route(logits.to(test_device()), top_k);
      const auto experts = values_of<int32_t>(r.experts);
      std::vector<double> weights;
      for (int64_t t = 0; t < tokens; ++t) {
        const float* z = logits.data_as<float>() + t * num_experts;
        std::vector<int32_t> order(static_cast<size_t>(num_experts));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return z[a] > z[b]; });
        order.resize(static_cast<size_t>(top_k));
        const auto got = experts.begin() + t * top_k;
        EXPECT_EQ(std::vector<int32_t>(got, got + top_k), order) << num_experts << " experts, token " << t;
        double sum = 0;
        for (const int32_t e : order) sum += std::exp(static_cast<double>(z[e] - z[order[0]]));
        for (const int32_t e : order)
          weights.push_back(std::exp(static_cast<double>(z[e] - z[order[0]])) / sum);
      }
      const double worst = static_cast<double>(top_k) * 0x1p-24;  // of a float32 sum taken in order
      expect_close(r.weights, weights, {std::max(kF32.nmse, worst * worst), std::max(kF32.max_abs, worst)},
                   concat("weights of ", num_experts, " experts"));
    }
}

TEST(RoutingSizes, InfiniteLogitsKeepTheirOrder) {
  const float inf = std::numeric_limits<float>::infinity();
  const ops::Routing r = ops::moe_route(device_tensor<float>({1, 6}, {-inf, 2, -inf, 2, -3e38f, -inf}), 5);
  EXPECT_EQ(values_of<int32_t>(r.experts), (std::vector<int32_t>{1, 3, 4, 0, 2}));
  EXPECT_EQ(values_of<float>(r.weights), (std::vector<float>{0.5f, 0.5f, 0, 0, 0}));
}

struct Permutation {
  std::vector<int32_t> offsets, tokens_of_row, row_of_choice;
};

Permutation reference(const std::vector<int32_t>& experts, int64_t num_experts, int64_t top_k) {
  std::vector<int32_t> order(experts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return experts[static_cast<size_t>(a)] < experts[static_cast<size_t>(b)];
  });
  Permutation p{.offsets = {}, .tokens_of_row = {}, .row_of_choice = std::vector<int32_t>(experts.size())};
  for (int32_t e = 0; e <= num_experts; ++e)
    p.offsets.push_back(static_cast<int32_t>(
        std::count_if(experts.begin(), experts.end(), [&](int32_t chosen) { return chosen < e; })));
  for (size_t row = 0; row < order.size(); ++row) {
    p.tokens_of_row.push_back(order[row] / static_cast<int32_t>(top_k));
    p.row_of_choice[static_cast<size_t>(order[row])] = static_cast<int32_t>(row);
  }
  return p;
}

void check_permutation(const std::vector<int32_t>& experts, int64_t num_experts, int64_t top_k) {
  const auto choices = static_cast<int64_t>(experts.size()), tokens = choices / top_k;
  const Tensor chosen = device_tensor<int32_t>({tokens, top_k}, experts);
  Guarded offsets({num_experts + 1}, Dtype::i32), of_row({choices}, Dtype::i32),
      of_choice({choices}, Dtype::i32);
  const MoePermuteArgs args{chosen.data_as<int32_t>(),
                            static_cast<int32_t*>(offsets.data()),
                            static_cast<int32_t*>(of_row.data()),
                            static_cast<int32_t*>(of_choice.data()),
                            tokens,
                            num_experts,
                            top_k};
  call_kernel(test_device(), &Kernels::moe_permute, "moe_permute", nullptr, args);
  const Permutation want = reference(experts, num_experts, top_k);
  const std::string what = concat(choices, " choices of ", num_experts, " experts");
  EXPECT_EQ(values_of<int32_t>(offsets.tensor()), want.offsets) << what;
  EXPECT_EQ(values_of<int32_t>(of_row.tensor()), want.tokens_of_row) << what;
  EXPECT_EQ(values_of<int32_t>(of_choice.tensor()), want.row_of_choice) << what;
  offsets.expect_intact("offsets"), of_row.expect_intact("tokens_of_row"),
      of_choice.expect_intact("row_of_choice");
}

TEST(RoutingSizes, PermutationIsTheStableSortByExpert) {
  struct Case {
    int64_t tokens, top_k, num_experts;
  };
  for (const auto& [tokens, top_k, num_experts] : {Case{0, 4, 5},
                                                   {1, 1, 1},
                                                   {1, 4, 32},
                                                   {7, 1, 2},
                                                   {37, 3, 128},
                                                   {129, 2, 6},
                                                   {4096, 4, 32},
                                                   {2048, 8, 256}}) {
    Random random(static_cast<uint64_t>(tokens));
    std::vector<int32_t> experts(static_cast<size_t>(tokens * top_k));
    for (int32_t& e : experts) e = static_cast<int32_t>(random.integer(0, num_experts - 1));
    check_permutation(experts, num_experts, top_k);
  }
}

TEST(RoutingSizes, PermutationOfOneCrowdedExpert) {
  for (const int32_t crowded : {0, 31, 127}) check_permutation(std::vector<int32_t>(1300, crowded), 128, 4);
}

TEST(RoutingSizes, CombineAddsInOrderAndRoundsEveryStep) {
  for (const int64_t hidden : {1, 3, 64, 2880}) {
    const int64_t tokens = 3, top_k = 4, rows = tokens * top_k;
    const Tensor y = random_normal({rows, hidden}, 1), weights = random_normal({tokens, top_k}, 2),
                 x = random_normal({tokens, hidden}, 3);
    std::vector<int32_t> row_of_choice(static_cast<size_t>(rows));
    for (size_t i = 0; i < row_of_choice.size(); ++i)
      row_of_choice[i] = static_cast<int32_t>((i * 5 + 2) % 12);
    std::vector<float> want(x.data_as<float>(), x.data_as<float>() + x.numel());
    for (int64_t i = 0; i < x.numel(); ++i)
      for (int64_t k = i / hidden * top_k; k < (i / hidden + 1) * top_k; ++k)
        want[static_cast<size_t>(i)] +=
            weights.data_as<float>()[k] *
            y.data_as<float>()[row_of_choice[static_cast<size_t>(k)] * hidden + i % hidden];
    Guarded sum({tokens, hidden}, Dtype::f32);
    const Device device = test_device();
    ASSERT_EQ(runtime(device).copy(device.index, nullptr, sum.data(), x.data(), x.nbytes()), Status::ok);
    const Tensor on_device = y.to(device), w = weights.to(device),
                 rows_on_device = device_tensor<int32_t>({tokens, top_k}, row_of_choice);
    const MoeCombineArgs args{on_device.data_as<float>(),
                              w.data_as<float>(),
                              rows_on_device.data_as<int32_t>(),
                              static_cast<float*>(sum.data()),
                              tokens,
                              hidden,
                              top_k};
    call_kernel(device, &Kernels::moe_combine, "moe_combine", nullptr, args);
    expect_same_bits(values_of<float>(sum.tensor()), want, concat("hidden ", hidden));
    sum.expect_intact("moe_combine");
  }
}

}  // namespace
}  // namespace trivium::testing
