// A thousand steps of the mLSTM: against the recurrence, and on a GPU recorded and run without the host.
#include "core/stream.h"
#include "ops/mlstm_args.h"
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

constexpr int64_t kSteps = 1000, kHeads = 2, kKeys = 4, kValues = 5;

// Inputs of all steps, and a state and outputs of their own for every way to run them.
struct Sequence {
  Tensor q = random_normal({kHeads, kSteps, kKeys}, 1).to(test_device());
  Tensor k = random_normal({kHeads, kSteps, kKeys}, 2).to(test_device());
  Tensor v = random_normal({kHeads, kSteps, kValues}, 3).to(test_device());
  Tensor li = random_normal({kSteps, kHeads}, 4).to(test_device());
  Tensor lf = negative({kSteps, kHeads}, 5).to(test_device());

  // A forget gate's log sigmoid is not above zero.
  static Tensor negative(const Shape& shape, uint64_t seed) {
    Tensor t = random_normal(shape, seed, 0.1);
    for (int64_t i = 0; i < t.numel(); ++i) t.data_as<float>()[i] = -std::fabs(t.data_as<float>()[i]);
    return t;
  }
};

struct Steps {
  Tensor c = zeros({kHeads, kKeys, kValues}), n = zeros({kHeads, kKeys}), m = zeros({kHeads});
  Tensor h = zeros({kHeads, kSteps, kValues});
  Tensor work = zeros({mlstm_recurrent_workspace({1, kHeads, 1, kKeys, kValues, 1})});

  static Tensor zeros(const Shape& shape) { return Tensor::zeros(shape, Dtype::f32, test_device()); }

  void step(const Stream& stream, const Sequence& s, int64_t t) {
    const MlstmStrides keys{0, kSteps * kKeys, kKeys}, values{0, kSteps * kValues, kValues};
    call_kernel(test_device(), &Kernels::mlstm_recurrent, "mlstm_recurrent", stream.handle(),
                MlstmRecurrentArgs{.q = s.q.data_as<float>() + t * kKeys,
                                   .k = s.k.data_as<float>() + t * kKeys,
                                   .v = s.v.data_as<float>() + t * kValues,
                                   .li = s.li.data_as<float>() + t * kHeads,
                                   .lf = s.lf.data_as<float>() + t * kHeads,
                                   .c = c.data(),
                                   .n = n.data_as<float>(),
                                   .m = m.data_as<float>(),
                                   .h = h.data_as<float>() + t * kValues,
                                   .den = nullptr,
                                   .m_out = nullptr,
                                   .qs = keys,
                                   .ks = keys,
                                   .vs = values,
                                   .hs = values,
                                   .size = {1, kHeads, 1, kKeys, kValues, 1},
                                   .options = {.scale = 0.5f,
                                               .eps = 1e-6f,
                                               .m_floor = -INFINITY,
                                               .sigmoid_input = 0,
                                               .normalize = 1},
                                   .dtype = Dtype::f32,
                                   .c_dtype = Dtype::f32,
                                   .workspace = work.data_as<float>()});
  }
};

// The recurrence written out, in double.
std::vector<double> recurrence(const Sequence& s) {
  const auto q = doubles_of(s.q), k = doubles_of(s.k), v = doubles_of(s.v), li = doubles_of(s.li),
             lf = doubles_of(s.lf);
  std::vector<double> out(kHeads * kSteps * kValues);
  for (int64_t head = 0; head < kHeads; ++head) {
    double c[kKeys][kValues] = {}, n[kKeys] = {}, m = 0;
    for (int64_t t = 0; t < kSteps; ++t) {
      const int64_t gate = t * kHeads + head, key = (head * kSteps + t) * kKeys,
                    value = (head * kSteps + t) * kValues;
      const double next = std::max(lf[gate] + m, li[gate]);
      const double forget = std::exp(lf[gate] + m - next), input = std::exp(li[gate] - next);
      double dot = 0;
      for (int64_t d = 0; d < kKeys; ++d) {
        n[d] = forget * n[d] + input * k[key + d];
        dot += 0.5 * n[d] * q[key + d];
        for (int64_t e = 0; e < kValues; ++e) c[d][e] = forget * c[d][e] + input * k[key + d] * v[value + e];
      }
      m = next;
      for (int64_t e = 0; e < kValues; ++e) {
        double sum = 0;
        for (int64_t d = 0; d < kKeys; ++d) sum += 0.5 * q[key + d] * c[d][e];
        out[value + e] = sum / (std::max(std::fabs(dot), std::exp(-m)) + 1e-6);
      }
    }
  }
  return out;
}

TEST(MlstmGraph, AThousandStepsAreTheRecurrence) {
  const Sequence s;
  Steps plain, recorded;
  Stream stream(test_device());
  for (int64_t t = 0; t < kSteps; ++t) plain.step(stream, s, t);
  stream.synchronize();
  expect_relative(plain.h, recurrence(s), 1e-5, "h against the recurrence in double");
  if (!Graph::supported(test_device())) return;  // the CPU runs kernels inside the call
  const Graph graph(stream, [&] {
    for (int64_t t = 0; t < kSteps; ++t) recorded.step(stream, s, t);
  });
  stream.synchronize();
  EXPECT_EQ(doubles_of(recorded.h), std::vector<double>(kHeads * kSteps * kValues)) << "recording ran";
  graph.launch(stream);
  stream.synchronize();
  EXPECT_EQ(values_of<float>(recorded.h), values_of<float>(plain.h));
  EXPECT_EQ(values_of<float>(recorded.c), values_of<float>(plain.c));
  EXPECT_EQ(values_of<float>(recorded.m), values_of<float>(plain.m));
}

}  // namespace
}  // namespace trivium::testing
