// The products that may be a row's maximum: against linear, whose bits they must have.
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/ops.h"
#include "ops/row_screen.h"
#include "support/backend.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

using ops::Weight;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  Tensor x, w;  // f32 [m, k], [n, k]
};

struct Outcome {
  int64_t multiplied = 0;  // elements that are not -inf
};

// Runs both and compares: every element either has linear's bits or is -inf and below the row's maximum.
Outcome expect_like_linear(const Case& c, Dtype activation, const char* what) {
  const Weight w = Weight::dense(c.w.to(Dtype::bf16), "w");
  const Tensor x = c.x.to(activation);
  const ops::RowScreen screen = ops::make_row_screen(w);
  const Tensor expected = ops::linear(x, w);
  Tensor y = Tensor::empty({x.dim(0), w.shape[0]}, Dtype::f32);
  ops::linear_maximum(x, w, screen, y);
  Outcome outcome;
  const int64_t n = w.shape[0];
  for (int64_t i = 0; i < x.dim(0); ++i) {
    const float *a = y.data_as<float>() + i * n, *b = expected.data_as<float>() + i * n;
    float best = -kInfinity;
    for (int64_t j = 0; j < n; ++j) best = b[j] > best ? b[j] : best;
    int64_t wrong = 0;
    for (int64_t j = 0; j < n; ++j) {
      const bool same = std::memcmp(a + j, b + j, sizeof(float)) == 0;
      wrong += !same && !(a[j] == -kInfinity && b[j] < best);
      outcome.multiplied += a[j] != -kInfinity;
    }
    EXPECT_EQ(wrong, 0) << what << ", " << activation << ", row " << i;
  }
  return outcome;
}

TEST(LinearMaximum, HasTheMaximaOfLinear) {
  for (const Dtype activation : {Dtype::f32, Dtype::bf16})
    for (const int64_t n : {1, 7, 8, 9, 300, 5000})
      for (const int64_t k : {1, 33, 64, 200})
        for (const int64_t m : {1, 3})
          expect_like_linear({random_normal({m, k}, static_cast<uint64_t>(n + k)),
                              random_normal({n, k}, static_cast<uint64_t>(n * k))},
                             activation, concat("m ", m, ", n ", n, ", k ", k).c_str());
}

TEST(LinearMaximum, MultipliesFewRows) {
  for (const Dtype activation : {Dtype::f32, Dtype::bf16}) {
    const Outcome o = expect_like_linear({random_normal({1, 512}, 5), random_normal({20000, 512}, 6)},
                                         activation, "normal");
    EXPECT_GE(o.multiplied, 1);
    EXPECT_LE(o.multiplied, 600) << activation;
  }
}

TEST(LinearMaximum, KeepsTiesAndNearTies) {
  Case c{random_normal({2, 96}, 1), random_normal({4000, 96}, 2)};
  float* w = c.w.data_as<float>();
  // Rows along x, so that they lead: two the same, one a last bit of bf16 away.
  for (const int64_t row : {17, 2300, 3999})
    for (int64_t i = 0; i < 96; ++i) w[row * 96 + i] = c.x.data_as<float>()[i];
  w[2300 * 96 + 5] *= 1.004f;
  for (const Dtype activation : {Dtype::f32, Dtype::bf16}) {
    const Outcome o = expect_like_linear(c, activation, "ties");
    EXPECT_GE(o.multiplied, 3);
    EXPECT_LE(o.multiplied, 1000);
  }
}

TEST(LinearMaximum, RowsOfAnySize) {
  Case c{random_normal({1, 130}, 1), random_normal({3000, 130}, 2)};
  const float powers[] = {0, 1e-38f, 1e-33f, 1e-20f, 1e-6f, 1, 1e6f, 1e20f};
  for (int64_t r = 0; r < 3000; ++r)
    for (int64_t i = 0; i < 130; ++i) c.w.data_as<float>()[r * 130 + i] *= powers[r % 8];
  c.w.data_as<float>()[8 * 130 + 3] = 3e38f;  // one element outweighs its row
  for (const float scale : {1e-30f, 1e-10f, 1.0f, 1e10f}) {
    Case scaled{random_normal({1, 130}, 1), c.w};
    for (int64_t i = 0; i < 130; ++i) scaled.x.data_as<float>()[i] *= scale;
    expect_like_linear(scaled, Dtype::f32, concat("scale ", scale).c_str());
    expect_like_linear(scaled, Dtype::bf16, concat("scale ", scale).c_str());
  }
}

TEST(LinearMaximum, AllRowsAlikeOrZero) {
  for (const float value : {0.0f, 1.0f}) {
    Case c{random_normal({1, 64}, 1), Tensor::empty({2000, 64}, Dtype::f32)};
    std::fill(c.w.data_as<float>(), c.w.data_as<float>() + c.w.numel(), value);
    EXPECT_EQ(expect_like_linear(c, Dtype::f32, "alike").multiplied, 2000);
  }
  Case zero{Tensor::zeros({1, 64}, Dtype::f32), random_normal({2000, 64}, 1)};
  EXPECT_EQ(expect_like_linear(zero, Dtype::bf16, "x is zero").multiplied, 2000);
}

TEST(LinearMaximum, NanAndInfinityAreWhereLinearHasThem) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInfinity, -kInfinity}) {
    Case in_x{random_normal({2, 64}, 1), random_normal({2000, 64}, 2)};
    in_x.x.data_as<float>()[70] = bad;
    EXPECT_EQ(expect_like_linear(in_x, Dtype::f32, "in x").multiplied > 1000, true);
    Case in_w{random_normal({1, 64}, 1), random_normal({2000, 64}, 2)};
    in_w.w.data_as<float>()[1234 * 64 + 5] = bad;
    const Tensor w16 = in_w.w.to(Dtype::bf16);
    const Weight w = Weight::dense(w16, "w");
    Tensor y = Tensor::empty({1, 2000}, Dtype::f32);
    ops::linear_maximum(in_w.x, w, ops::make_row_screen(w), y);
    const float expected = ops::linear(in_w.x, w).data_as<float>()[1234];
    EXPECT_EQ(std::memcmp(y.data_as<float>() + 1234, &expected, sizeof expected), 0) << bad;
  }
}

TEST(LinearMaximum, BitsDoNotDependOnThreads) {
  const Case c{random_normal({1, 256}, 5), random_normal({9000, 256}, 6)};
  for (const int threads : {1, 3, 7}) {
    const Threads scope(threads);
    expect_like_linear(c, Dtype::bf16, "threads");
  }
}

TEST(LinearMaximum, RefusesWhatDoesNotFit) {
  const Weight w = Weight::dense(random_normal({10, 64}, 1).to(Dtype::bf16), "w");
  const Weight other = Weight::dense(random_normal({11, 64}, 1).to(Dtype::bf16), "w");
  const Tensor x = random_normal({1, 64}, 1);
  Tensor y = Tensor::empty({1, 10}, Dtype::f32);
  expect_error([&] { ops::linear_maximum(x, w, ops::make_row_screen(other), y); }, {"screen", "[10, 64]"});
  expect_error([&] { ops::make_row_screen(Weight::dense(x, "w")); }, {"[1, 64]", "bfloat16"});
  Tensor narrow = Tensor::empty({1, 9}, Dtype::f32);
  expect_error([&] { ops::linear_maximum(x, w, ops::make_row_screen(w), narrow); }, {"[1, 9]", "[1, 10]"});
}

}  // namespace
}  // namespace trivium::testing
