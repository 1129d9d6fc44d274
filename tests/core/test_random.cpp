// Philox 4x32-10 against the known answers published with Random123 (Salmon et al., SC 2011).
#include "core/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace trivium {
namespace {

using Words = PhiloxBlock;

TEST(Philox, GivesThePublishedKnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (Words{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (Words{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  // Counter and key are the digits of pi; the first word of a pair is the low half.
  EXPECT_EQ(philox(0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull),
            (Words{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
}

TEST(Philox, UniformTakesTheUpper24BitsOfTheFirstWord) {
  EXPECT_EQ(philox_uniform(0, 0), static_cast<float>(0x6627e8) / 16777216.0f);
  double sum = 0;
  std::set<float> seen;
  for (uint64_t i = 0; i < 10000; ++i) {
    const float u = philox_uniform(7, i);
    ASSERT_TRUE(0 <= u && u < 1) << u;
    sum += static_cast<double>(u);
    seen.insert(u);
  }
  EXPECT_NEAR(sum / 10000, 0.5, 5 / std::sqrt(12.0 * 10000));
  EXPECT_GT(seen.size(), 9900u);
}

TEST(Philox, KeyAndCounterBothMatterInAllTheirBits) {
  std::set<Words> seen;
  for (int bit = 0; bit < 64; ++bit) {
    seen.insert(philox(1ull << bit, 0, 0));
    seen.insert(philox(0, 1ull << bit, 0));
    seen.insert(philox(0, 0, 1ull << bit));
  }
  EXPECT_EQ(seen.size(), 192u);
}

}  // namespace
}  // namespace trivium
