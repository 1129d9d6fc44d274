// The table of cosines and sines on every backend: each entry is the double result rounded once to float32,
// for positions up to 2^20.
#include "ops/ops.h"
#include "support/compare.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

TEST(RopeTable, EveryEntryIsTheRoundedDouble) {
  const auto f = ops::rope_frequencies(64, {.theta = 150000, .factor = 32, .attention_factor = {}});
  const auto pairs = static_cast<int64_t>(f.inv_freq.size());
  Random random(1);
  std::vector<int32_t> positions{0, 1, 4095, 4096, 131071, 1 << 20};
  while (positions.size() < 1000) positions.push_back(static_cast<int32_t>(random.integer(0, 1 << 20)));
  const auto tokens = static_cast<int64_t>(positions.size());
  const Tensor places = device_tensor<int32_t>({tokens}, positions),
               inv_freq = device_tensor<double>({pairs}, f.inv_freq);
  Guarded table({tokens, pairs, 2}, Dtype::f32);
  const RopeTableArgs args{places.data_as<int32_t>(),
                           inv_freq.data_as<double>(),
                           static_cast<float*>(table.data()),
                           tokens,
                           pairs,
                           f.concentration};
  call_kernel(test_device(), &Kernels::rope_table, "rope_table", nullptr, args);
  table.expect_intact("rope_table");
  std::vector<float> want;
  for (const int32_t position : positions)
    for (const double frequency : f.inv_freq) {
      want.push_back(static_cast<float>(std::cos(position * frequency) * f.concentration));
      want.push_back(static_cast<float>(std::sin(position * frequency) * f.concentration));
    }
  expect_same_bits(values_of<float>(table.tensor()), want, "table");
}

}  // namespace
}  // namespace trivium::testing
