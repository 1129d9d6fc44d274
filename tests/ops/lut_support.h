// LUT layers, inputs and comparisons for the tests.
#pragma once

#include "ops/lut.h"
#include "support/compare.h"
#include "support/golden.h"
#include "support/inputs.h"

namespace trivium::testing {

// f32 results of at most a few thousand terms; lut.md 11.3 asks for 1e-5 relative.
inline constexpr Bounds kLut{1e-11, 1e-5};

inline Tensor host_i32(const Shape& shape, const std::vector<int32_t>& values) {
  return host_tensor<int32_t>(shape, values);
}

// Ordered pairs of distinct inputs.
inline Tensor random_anchors(int64_t tables, int64_t pairs, int64_t inputs, uint64_t seed) {
  Random random(seed);
  Tensor t = Tensor::empty({tables, pairs, 2}, Dtype::i32);
  for (int64_t i = 0; i < tables * pairs; ++i) {
    const int64_t a = random.integer(0, inputs - 1), b = random.integer(0, inputs - 2);
    t.data_as<int32_t>()[2 * i] = static_cast<int32_t>(a);
    t.data_as<int32_t>()[2 * i + 1] = static_cast<int32_t>(b + (b >= a));
  }
  return t;
}

// One layer with random weights, inputs and output gradients, on the test device.
struct LutCase {
  lut::LayerOptions options;
  int64_t batch = 2, length = 1;
  Tensor x, pe, w, gy;  // on the host
  std::shared_ptr<lut::Layer> layer;
  std::shared_ptr<lut::Workspace> work;

  LutCase(lut::LayerOptions o, int64_t batch_size, uint64_t seed, bool integers = false)
      : options(std::move(o)), batch(batch_size), length(options.sequence_length) {
    work = std::make_shared<lut::Workspace>(test_device());
    rebuild();
    const bool sequence = layer->is_sequence();
    const auto make = [&](const Shape& shape, uint64_t s) {
      return integers ? random_integers(shape, s) : random_normal(shape, s);
    };
    x = random_normal(sequence ? Shape{batch, length, options.inputs} : Shape{batch, options.inputs},
                      seed + 1);
    w = make(layer->weight_shape(), seed + 2);
    gy = make(sequence ? Shape{batch, length, options.outputs} : Shape{batch, options.outputs}, seed + 3);
    if (options.positional_dim) pe = random_normal(layer->pe_shape(), seed + 4);
  }
  void rebuild() { layer = std::make_shared<lut::Layer>(options, test_device()); }
  Tensor weights() const { return w.to(test_device()); }
  Tensor embeddings() const { return pe.rank() ? pe.to(test_device()) : Tensor(); }
  lut::Forward forward(bool training = true, bool staged = false) const {
    return lut::forward(*layer, weights(), x.to(test_device()), embeddings(), training, *work, staged);
  }
  lut::Gradients backward(const lut::Saved& saved, const lut::BackwardOptions& o = {},
                          bool staged = false) const {
    return lut::backward(*layer, weights(), gy.to(test_device()), saved, o, *work, staged);
  }
};

inline lut::LayerOptions rows_layer(int64_t inputs, int64_t tables, int64_t pairs, int64_t outputs,
                                    uint64_t seed = 1) {
  lut::LayerOptions o;
  o.inputs = inputs;
  o.outputs = outputs;
  o.anchors = random_anchors(tables, pairs, inputs, seed);
  return o;
}

inline lut::LayerOptions sequence_layer(int64_t inputs, int64_t tables, int64_t pairs, int64_t npe,
                                        int64_t outputs, int64_t length, uint64_t seed = 1) {
  lut::LayerOptions o = rows_layer(inputs, tables, pairs, outputs, seed);
  o.mode = lut::Mode::sequence;
  o.sequence_length = length;
  o.positional_dim = npe;
  return o;
}

inline lut::LayerOptions product_layer(int64_t inputs, int64_t tables, int64_t pairs, int64_t npe,
                                       int64_t outputs, int64_t length, bool sliced, uint64_t seed = 1) {
  lut::LayerOptions o = sequence_layer(inputs, tables, pairs, npe, outputs, length, seed);
  o.mode = sliced ? lut::Mode::sliced : lut::Mode::product;
  o.anchors = random_anchors(tables, pairs, 2 * inputs + npe, seed);
  return o;
}

// Makes a fully connected layer sparse: synapse k of a row exists when keep(row, output).
template <class Keep>
void make_sparse(LutCase& c, const Keep& keep, bool shared) {
  const int64_t cells = c.layer->cells(), tables = c.layer->num_tables(), outputs = c.options.outputs;
  std::vector<int64_t> pointers{0};
  std::vector<int32_t> targets;
  std::vector<float> weights;
  for (int64_t row = 0; row < tables * cells; ++row) {
    for (int64_t o = 0; o < outputs; ++o) {
      if (!keep(shared ? row / cells : row, o)) continue;
      weights.push_back(c.w.data_as<float>()[row * outputs + o]);
      if (!shared || row % cells == 0) targets.push_back(static_cast<int32_t>(o));
    }
    if (!shared || row % cells == 0) pointers.push_back(static_cast<int64_t>(targets.size()));
  }
  c.options.pointers = host_tensor<int64_t>({static_cast<int64_t>(pointers.size())}, pointers);
  c.options.targets = host_i32({static_cast<int64_t>(targets.size())}, targets);
  c.w = host_tensor<float>({static_cast<int64_t>(weights.size())}, weights);
  c.rebuild();
}

inline void expect_same(const Tensor& got, const Tensor& want, const std::string& what) {
  expect_same_bits(got.reshape({got.numel()}), want.reshape({want.numel()}), what);
}

inline double inner(const Tensor& a, const Tensor& b) {
  const auto x = doubles_of(a), y = doubles_of(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace trivium::testing
