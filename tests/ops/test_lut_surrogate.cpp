// The surrogate gradient is the exact gradient of a smoothed objective (lut.md 11.1): finite differences of a
// float64 implementation of that objective, written here pair by pair, against every backend's backward.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

struct Detected {
  int64_t cell = 0;
  int least = -1;
  double u = INFINITY;
};

// `values` gives the compared coordinates.
template <class Values>
Detected detect(const LutCase& c, int64_t t, const Values& values) {
  Detected d;
  const int64_t pairs = c.layer->num_anchors();
  for (int64_t r = 0; r < pairs; ++r) {
    const int32_t* pair = c.options.anchors.data_as<int32_t>() + (t * pairs + r) * 2;
    const double u = values(pair[0]) - values(pair[1]);
    if (u > 0) d.cell |= int64_t{1} << r;
    if (std::abs(u) < std::abs(d.u)) d.u = u, d.least = static_cast<int>(r);
  }
  return d;
}

Detected detect_pe(const LutCase& c, int64_t distance, int64_t t) {
  Detected d;
  const int64_t npe = c.options.positional_dim, tables = c.layer->num_tables();
  for (int64_t r = 0; r < npe; ++r) {
    const double u = c.pe.data_as<float>()[((distance - 1) * tables + t) * npe + r];
    if (u > 0) d.cell |= int64_t{1} << r;
    if (std::abs(u) < std::abs(d.u)) d.u = u, d.least = static_cast<int>(r);
  }
  return d;
}

class Objective {
 public:
  // dense: the weights of all outputs, [tables, cells, outputs].
  Objective(const LutCase& c, Tensor dense) : c_(c), dense_(std::move(dense)) {}

  double value() const {
    double sum = 0;
    const int64_t tables = c_.layer->num_tables();
    for (int64_t b = 0; b < c_.batch; ++b)
      for (int64_t t = 0; t < tables; ++t) {
        if (!c_.layer->is_sequence()) {
          const Detected d = detect(c_, t, [&](int64_t i) { return x(b, i); });
          sum += dot(b, t, d.cell) + blended(b, t, d.cell, d.cell ^ int64_t{1} << d.least, d.u);
          continue;
        }
        for (int64_t j = 1; j < c_.length; ++j)
          for (int64_t i = 0; i < j; ++i)
            sum += c_.layer->is_product() ? product_pair(b, t, i, j) : pair(b, t, i, j);
      }
    return sum;
  }

 private:
  double x(int64_t row, int64_t i) const { return c_.x.data_as<float>()[row * c_.options.inputs + i]; }
  double dot(int64_t row, int64_t t, int64_t cell) const {
    const int64_t outputs = c_.options.outputs;
    double sum = 0;
    for (int64_t o = 0; o < outputs; ++o)
      sum += double{c_.gy.data_as<float>()[row * outputs + o]} *
             double{dense_.data_as<float>()[(t * c_.layer->cells() + cell) * outputs + o]};
    return sum;
  }
  double blended(int64_t row, int64_t t, int64_t cell, int64_t alternative, double u) const {
    return 0.5 / (1 + std::abs(u)) * (dot(row, t, alternative) - dot(row, t, cell));
  }
  double pair(int64_t b, int64_t t, int64_t i, int64_t j) const {
    const int64_t early = b * c_.length + i, late = b * c_.length + j, npe = c_.options.positional_dim;
    const int64_t shift = c_.layer->num_anchors() + npe;
    const Detected q = detect(c_, t, [&](int64_t k) { return x(late, k); });
    const Detected k = detect(c_, t, [&](int64_t at) { return x(early, at); });
    const Detected e = detect_pe(c_, j - i, t);
    const int64_t cell = q.cell << shift | k.cell << npe | e.cell;
    double sum = dot(late, t, cell);
    if (std::abs(q.u) < std::abs(k.u))
      sum += blended(late, t, cell, cell ^ int64_t{1} << (q.least + shift), q.u);
    else
      sum += blended(late, t, cell, cell ^ int64_t{1} << (k.least + npe), k.u);
    if (npe && std::abs(e.u) < std::abs(q.u) && std::abs(e.u) < std::abs(k.u))
      sum += blended(late, t, cell, cell ^ int64_t{1} << e.least, e.u);
    return sum;
  }
  double product_pair(int64_t b, int64_t t, int64_t i, int64_t j) const {
    const int64_t inputs = c_.options.inputs, npe = c_.options.positional_dim;
    const bool sliced = c_.options.mode == lut::Mode::sliced;
    const Detected d = detect(c_, t, [&](int64_t at) -> double {
      const int64_t part = sliced ? at % 3 : std::min<int64_t>(at / inputs, 2);
      const int64_t k = sliced ? at / 3 : at - part * inputs;
      if (part == 2) return c_.pe.data_as<float>()[((j - i - 1) * c_.layer->num_tables() + t) * npe + k];
      return x(b * c_.length + (part ? j : i), k);
    });
    const int64_t late = b * c_.length + j;
    return dot(late, t, d.cell) + blended(late, t, d.cell, d.cell ^ int64_t{1} << d.least, d.u);
  }

  const LutCase& c_;
  Tensor dense_;
};

// Central differences in every element of `in`; elements near a switch are told by their second difference.
int64_t compare(const Objective& objective, const Tensor& in, const Tensor& gradient, const char* what) {
  constexpr float kStep = 0x1p-10f;
  const auto got = values_of<float>(gradient);
  int64_t compared = 0;
  for (int64_t i = 0; i < in.numel(); ++i) {
    float& value = in.data_as<float>()[i];
    const float old = value;
    value = old + kStep;
    const double up = objective.value(), up_at = value;
    value = old - kStep;
    const double down = objective.value(), down_at = value;
    value = old;
    if (std::abs(up - 2 * objective.value() + down) > 1e-4) continue;
    const double slope = (up - down) / (up_at - down_at);
    EXPECT_NEAR(got[static_cast<size_t>(i)], slope, 2e-4 * (1 + std::abs(slope))) << what << ' ' << i;
    ++compared;
  }
  return compared;
}

void expect_surrogate(LutCase c, const Tensor& dense, const char* what) {
  const auto gradients = c.backward(c.forward().saved);
  const Objective objective(c, dense);
  EXPECT_GT(compare(objective, c.x, gradients.gx, what), c.x.numel() / 2) << what;
  if (c.pe.rank()) {
    EXPECT_GT(compare(objective, c.pe, gradients.gpe, what), c.pe.numel() / 2) << what;
  }
}

TEST(LutSurrogate, Rows) {
  for (uint64_t seed = 10; seed < 13; ++seed) {
    const LutCase c(rows_layer(7, 4, 3, 5, seed), 3, seed);
    expect_surrogate(c, c.w, "rows");
  }
}

TEST(LutSurrogate, SparseRows) {
  for (const bool shared : {false, true}) {
    const auto keep = [](int64_t row, int64_t o) { return (row * 5 + o * 3) % 7 < 4; };
    LutCase c(rows_layer(7, 4, 3, 5, 20), 3, 20);
    const Tensor dense = Tensor::zeros(c.w.shape(), Dtype::f32);
    for (int64_t i = 0; i < dense.numel(); ++i)
      if (keep(shared ? i / 5 / 8 : i / 5, i % 5)) dense.data_as<float>()[i] = c.w.data_as<float>()[i];
    make_sparse(c, keep, shared);
    expect_surrogate(c, dense, "sparse");
  }
}

TEST(LutSurrogate, Sequences) {
  for (const int64_t npe : {0, 2})
    for (uint64_t seed = 30; seed < 32; ++seed) {
      const LutCase c(sequence_layer(6, 3, 2, npe, 4, 5, seed), 2, seed);
      expect_surrogate(c, c.w, "sequence");
    }
}

TEST(LutSurrogate, ProductModes) {
  for (const bool sliced : {false, true}) {
    const LutCase c(product_layer(3, 3, 3, 3, 4, 4, sliced, 40), 2, 40);
    expect_surrogate(c, c.w, sliced ? "sliced" : "product");
  }
}

}  // namespace
}  // namespace trivium::testing
