// What the mLSTM tests share: golden cases on the test device, and error measures.
#pragma once

#include <cmath>
#include <string>

#include "ops/mlstm.h"
#include "support/backend.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {

// ||got - want|| / ||want||; errors against an all-zero result count absolutely.
inline double relative_l2(const Tensor& got, std::span<const double> want) {
  const auto values = doubles_of(got);
  if (values.size() != want.size()) return INFINITY;
  double errors = 0, squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    errors += (values[i] - want[i]) * (values[i] - want[i]);
    squares += want[i] * want[i];
  }
  if (!std::isfinite(errors)) return INFINITY;
  return std::sqrt(squares > 0 ? errors / squares : errors);
}

inline void expect_relative(const Tensor& got, std::span<const double> want, double bound,
                            const std::string& what) {
  EXPECT_LE(relative_l2(got, want), bound) << what;
}

// `t` as another type; converted on the host, so that the kernel under test is the only one.
inline Tensor as_type(const Tensor& t, Dtype dtype) {
  return t.to(Device{}).contiguous().to(dtype).to(test_device());
}

struct MlstmCase {
  ops::MlstmInputs x;
  ops::MlstmState initial;
  Tensor dh, dc, dn;
  int64_t chunk;
};

inline const Golden& mlstm_golden() {
  static const Golden golden("mlstm");
  return golden;
}

// Case `name` with q, k, v and dh of `dtype`.
inline MlstmCase mlstm_case(const std::string& name, Dtype dtype = Dtype::f32) {
  const Golden& golden = mlstm_golden();
  const auto take = [&](const char* key) {
    return golden.has(name + "." + key) ? golden.device(name + "." + key) : Tensor();
  };
  MlstmCase c;
  c.x = {as_type(take("q"), dtype), as_type(take("k"), dtype), as_type(take("v"), dtype), take("i"),
         take("f")};
  c.initial = {take("C0"), take("n0"), take("m0")};
  c.dh = as_type(take("dH"), dtype), c.dc = take("dC"), c.dn = take("dn");
  c.chunk = golden.has(name + ".chunk") ? golden.number(name + ".chunk") : 64;
  return c;
}

inline std::vector<double> mlstm_expected(const std::string& name, const std::string& key) {
  return mlstm_golden().doubles(name + "." + key);
}

inline constexpr const char* kMlstmCases[] = {"plain",   "no_state", "odd",     "one_token", "one_wide",
                                              "extreme", "floor",    "large_i", "start"};

// Random inputs; gates of a trained model's size.
inline ops::MlstmInputs mlstm_inputs(int64_t batch, int64_t heads, int64_t tokens, int64_t dqk, int64_t dv,
                                     uint64_t seed) {
  const auto make = [&](const Shape& shape, uint64_t n, double scale, double offset) {
    Tensor t = random_normal(shape, seed * 10 + n, scale);
    for (int64_t i = 0; i < t.numel(); ++i) t.data_as<float>()[i] += static_cast<float>(offset);
    return t.to(test_device());
  };
  return {make({batch, heads, tokens, dqk}, 0, 1, 0), make({batch, heads, tokens, dqk}, 1, 1, 0),
          make({batch, heads, tokens, dv}, 2, 1, 0), make({batch, heads, tokens}, 3, 1, -1),
          make({batch, heads, tokens}, 4, 1, 2)};
}

// Tokens [begin, end) of [B, NH, S, ...].
inline Tensor tokens_of(const Tensor& t, int64_t begin, int64_t end) {
  const Tensor host = t.to(Device{}).contiguous();
  const int64_t heads = t.dim(0) * t.dim(1), tokens = t.dim(2), width = t.rank() == 4 ? t.dim(3) : 1;
  const Shape shape =
      t.rank() == 4 ? Shape{t.dim(0), t.dim(1), end - begin, width} : Shape{t.dim(0), t.dim(1), end - begin};
  Tensor out = Tensor::empty(shape, t.dtype());
  const int64_t bytes = size_of(t.dtype()) * width;
  for (int64_t h = 0; h < heads; ++h)
    std::memcpy(static_cast<char*>(out.data()) + h * (end - begin) * bytes,
                static_cast<const char*>(host.data()) + (h * tokens + begin) * bytes,
                static_cast<size_t>((end - begin) * bytes));
  return out.to(test_device());
}
inline ops::MlstmInputs tokens_of(const ops::MlstmInputs& x, int64_t begin, int64_t end) {
  return {tokens_of(x.q, begin, end), tokens_of(x.k, begin, end), tokens_of(x.v, begin, end),
          tokens_of(x.i, begin, end), tokens_of(x.f, begin, end)};
}

inline ops::MlstmState copy_of(const ops::MlstmState& s) {
  const auto copy = [](const Tensor& t) {
    return t.defined() ? device_tensor(t.shape(), values_of<float>(t)) : Tensor();
  };
  return {copy(s.c), copy(s.n), copy(s.m)};
}
inline ops::MlstmState zero_state(const ops::MlstmInputs& x) {
  const int64_t b = x.q.dim(0), h = x.q.dim(1), dqk = x.q.dim(3), dv = x.v.dim(3);
  return {Tensor::zeros({b, h, dqk, dv}, Dtype::f32, test_device()),
          Tensor::zeros({b, h, dqk}, Dtype::f32, test_device()),
          Tensor::zeros({b, h}, Dtype::f32, test_device())};
}

}  // namespace trivium::testing
