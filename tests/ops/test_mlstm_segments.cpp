// A language model's step of the mLSTM against the recurrence in float64, however its tokens are cut into
// segments and steps; and the elementwise work around it.
#include <algorithm>
#include <cmath>

#include "core/registry.h"
#include "ops/mlstm_args.h"
#include "ops/mlstm_support.h"

namespace trivium::testing {
namespace {

struct Sizes {
  int64_t heads, dqk, dv;
  int64_t stride() const { return heads * (2 * dqk + dv); }
};

// Tokens of one sequence: rows of q, k, v and rows of both gates.
struct Sequence {
  std::vector<float> qkv, gates;
};

Sequence random_sequence(const Sizes& z, int64_t tokens, uint64_t seed) {
  const auto values = [](int64_t count, uint64_t s, double scale) {
    return values_of<float>(random_normal({count}, s, scale));
  };
  Sequence s{values(tokens * z.stride(), seed, 1), values(tokens * 2 * z.heads, seed + 1, 1)};
  // As a trained model's: tokens enter weakly and are remembered. Then denominators do not cancel.
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < z.heads; ++h) {
      s.gates[static_cast<size_t>(2 * t * z.heads + h)] -= 1;
      s.gates[static_cast<size_t>((2 * t + 1) * z.heads + h)] += 2;
    }
  return s;
}

constexpr double kCap = 15, kEps = 1e-6;
MlstmOptions options_of(const Sizes& z) {
  return {.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(z.dqk))),
          .eps = static_cast<float>(kEps),
          .m_floor = -10,
          .sigmoid_input = 0,
          .normalize = 1};
}

double capped(double x) { return kCap * std::tanh(x / kCap); }

// h of all tokens, [tokens, heads, dv], by the recurrence.
std::vector<double> reference(const Sizes& z, const Sequence& s, int64_t tokens) {
  std::vector<double> out(static_cast<size_t>(tokens * z.heads * z.dv));
  const double scale = 1 / std::sqrt(static_cast<double>(z.dqk));
  for (int64_t head = 0; head < z.heads; ++head) {
    std::vector<double> c(static_cast<size_t>(z.dqk * z.dv)), n(static_cast<size_t>(z.dqk));
    double m = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = s.qkv.data() + t * z.stride();
      const float *q = row + head * z.dqk, *k = q + z.heads * z.dqk,
                  *v = row + 2 * z.heads * z.dqk + head * z.dv;
      const float* gate = s.gates.data() + t * 2 * z.heads + head;
      const double li = capped(gate[0]), f = capped(gate[z.heads]);
      const double lf = std::min(f, 0.0) - std::log1p(std::exp(-std::abs(f)));
      const double after = std::max(lf + m, li), keep = std::exp(lf + m - after), take = std::exp(li - after);
      double nt = 0;
      std::vector<double> num(static_cast<size_t>(z.dv));
      for (int64_t d = 0; d < z.dqk; ++d) {
        n[static_cast<size_t>(d)] = keep * n[static_cast<size_t>(d)] + take * double{k[d]};
        nt += scale * double{q[d]} * n[static_cast<size_t>(d)];
        for (int64_t e = 0; e < z.dv; ++e) {
          double& place = c[static_cast<size_t>(d * z.dv + e)];
          place = keep * place + take * double{k[d]} * double{v[e]};
          num[static_cast<size_t>(e)] += scale * double{q[d]} * place;
        }
      }
      m = after;
      // With the floor everything is in units of exp(max(m, -10)).
      const double shift = std::exp(m - std::max(m, -10.0));
      const double den = std::max(std::abs(nt) * shift, std::exp(-std::max(m, -10.0))) + kEps;
      for (int64_t e = 0; e < z.dv; ++e)
        out[static_cast<size_t>((t * z.heads + head) * z.dv + e)] = num[static_cast<size_t>(e)] * shift / den;
    }
  }
  return out;
}

// Slots on the test device, fed step by step.
class Cell {
 public:
  Cell(const Sizes& sizes, int slots)
      : z_(sizes),
        stride_(z_.heads * mlstm_slot_floats(z_.dqk, z_.dv)),
        slots_(Tensor::empty({slots, stride_}, Dtype::f32, test_device())) {
    // What no token wrote must not matter.
    const Device device = test_device();
    EXPECT_EQ(runtime(device).fill(device.index, nullptr, slots_.data(), 0xff, slots_.nbytes()), Status::ok);
  }

  struct Part {
    const Sequence& sequence;
    int slot;
    int64_t start, count;
  };

  // h of every part, one after another; `padding` empty segments follow.
  std::vector<float> step(const std::vector<Part>& parts, int padding = 0) {
    std::vector<float> qkv, gates;
    std::vector<int32_t> segments, owners;
    int64_t rows = 0, longest = 0;
    for (const Part& p : parts) {
      const auto further = mlstm_further_chunks(p.start, p.count);
      for (const int64_t value :
           {int64_t{p.slot}, p.start, rows, p.count, static_cast<int64_t>(owners.size())})
        segments.push_back(static_cast<int32_t>(value));
      owners.insert(owners.end(), static_cast<size_t>(further),
                    static_cast<int32_t>(segments.size() / 5 - 1));
      const auto add = [&](std::vector<float>& to, const std::vector<float>& from, int64_t width) {
        to.insert(to.end(), from.begin() + p.start * width, from.begin() + (p.start + p.count) * width);
      };
      add(qkv, p.sequence.qkv, z_.stride());
      add(gates, p.sequence.gates, 2 * z_.heads);
      rows += p.count;
      longest = std::max(longest, p.count);
    }
    EXPECT_LE(static_cast<int64_t>(owners.size()),
              mlstm_most_further_chunks(static_cast<int64_t>(parts.size()), rows));
    segments.resize(segments.size() + 5 * static_cast<size_t>(padding));
    const auto num_further = static_cast<int64_t>(owners.size());
    const Tensor x = device_tensor<float>({rows, z_.stride()}, qkv),
                 g = device_tensor<float>({rows, 2 * z_.heads}, gates),
                 list = device_tensor<int32_t>({static_cast<int64_t>(segments.size())}, segments),
                 owner = device_tensor<int32_t>({num_further}, owners),
                 between = Tensor::empty({num_further, mlstm_chunk_state_floats(z_.heads, z_.dqk, z_.dv)},
                                         Dtype::f32, test_device());
    const Guarded h({rows, z_.heads, z_.dv}, Dtype::f32);
    const float* q = x.data_as<float>();
    const MlstmSegmentsArgs args{.q = q,
                                 .k = q + z_.heads * z_.dqk,
                                 .v = q + 2 * z_.heads * z_.dqk,
                                 .i = g.data_as<float>(),
                                 .f = g.data_as<float>() + z_.heads,
                                 .segments = reinterpret_cast<const MlstmSegment*>(list.data()),
                                 .slots = slots_.data_as<float>(),
                                 .h = static_cast<float*>(h.data()),
                                 .num_segments = static_cast<int64_t>(parts.size()) + padding,
                                 .heads = z_.heads,
                                 .dqk = z_.dqk,
                                 .dv = z_.dv,
                                 .stride = z_.stride(),
                                 .gate_stride = 2 * z_.heads,
                                 .slot_stride = stride_,
                                 .gate_cap = static_cast<float>(kCap),
                                 .options = options_of(z_),
                                 .longest = longest,
                                 .num_further = num_further,
                                 .owners = owner.data_as<int32_t>(),
                                 .chunk_states = between.data_as<float>()};
    call_kernel(test_device(), &Kernels::mlstm_segments, "mlstm_segments", nullptr, args);
    h.expect_intact("mlstm_segments");
    Guarded copy = h;
    return values_of<float>(copy.tensor());
  }

 private:
  Sizes z_;
  int64_t stride_;
  Tensor slots_;
};

TEST(MlstmSegments, MatchTheRecurrence) {
  // Tails in every product; more than four runs of 64 dimensions; two tiles each way.
  std::vector<std::pair<Sizes, int64_t>> cases = {{{2, 11, 23}, 150}, {{1, 270, 70}, 67}, {{1, 1, 1}, 70}};
  if (!emulated())
    cases.insert(cases.end(), {{{2, 256, 512}, 300}, {{1, 70, 130}, 200}, {{3, 16, 32}, 1000}});
  for (const auto& [z, tokens] : cases) {
    const Sequence s = random_sequence(z, tokens, 5);
    Cell cell(z, 1);
    const auto got = cell.step({{s, 0, 0, tokens}});
    expect_relative(host_tensor<float>({tokens, z.heads, z.dv}, got), reference(z, s, tokens), 4e-6,
                    concat("head of ", z.dqk, " and ", z.dv));
  }
}

TEST(MlstmSegments, ManyChunksDoNotDrift) {
  const Sizes z{1, 4, 4};
  const int64_t tokens = 32768;
  Sequence s = random_sequence(z, tokens, 5);
  for (float& value : s.qkv) value = std::abs(value);
  // Where the cap saturates its gate is exact, 15. One old token weighs as much as all others together.
  for (size_t t = 0; t < s.gates.size() / 2; ++t) {
    s.gates[2 * t] = t == 0 ? 200.0f : 5.2f;
    s.gates[2 * t + 1] = 200;
  }
  Cell cell(z, 1);
  const auto got = cell.step({{s, 0, 0, tokens}});
  expect_relative(host_tensor<float>({tokens, z.heads, z.dv}, got), reference(z, s, tokens), 8e-6, "h");
}

TEST(MlstmSegments, AnyCutGivesTheSameBits) {
  const Sizes z = emulated() ? Sizes{1, 270, 24} : Sizes{2, 270, 130};
  const int64_t tokens = emulated() ? 140 : 300;
  const Sequence s = random_sequence(z, tokens, 6);
  Cell cell(z, 2);
  const auto whole = cell.step({{s, 0, 0, tokens}});
  Random random(9);
  for (int round = 0; round < (emulated() ? 3 : 12); ++round) {
    const int64_t most = round == 0 ? 1 : random.integer(2, 90);
    std::vector<float> pieces;
    for (int64_t start = 0; start < tokens;) {
      const int64_t count = std::min(random.integer(1, most), tokens - start);
      const auto part = cell.step({{s, 1, start, count}});
      pieces.insert(pieces.end(), part.begin(), part.end());
      start += count;
    }
    expect_same_bits(pieces, whole, concat("pieces of up to ", most));
  }
}

TEST(MlstmSegments, SegmentsOfAStepDoNotTouchEachOther) {
  const Sizes z{2, 11, 23};
  const Sequence a = random_sequence(z, 140, 7), b = random_sequence(z, 140, 17),
                 c = random_sequence(z, 9, 27);
  const auto alone = [&](const Sequence& s, int64_t tokens) { return Cell(z, 1).step({{s, 0, 0, tokens}}); };
  const auto want_a = alone(a, 140), want_b = alone(b, 140), want_c = alone(c, 9);
  Cell cell(z, 4);
  const auto width = z.heads * z.dv;
  // Into the second and third chunk, a decode step that fills one, a sequence that begins.
  std::vector<std::vector<Cell::Part>> steps = {{{a, 2, 0, 60}, {b, 0, 0, 63}},
                                                {{a, 2, 60, 80}, {b, 0, 63, 1}, {c, 3, 0, 1}},
                                                {{b, 0, 64, 76}, {c, 3, 1, 8}}};
  std::vector<float> got_a, got_b, got_c;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto h = cell.step(steps[i], static_cast<int>(i));
    auto at = h.begin();
    for (const Cell::Part& p : steps[i]) {
      auto& to = &p.sequence == &a ? got_a : &p.sequence == &b ? got_b : got_c;
      to.insert(to.end(), at, at + p.count * width);
      at += p.count * width;
    }
  }
  expect_same_bits(got_a, want_a, "a");
  expect_same_bits(got_b, want_b, "b");
  expect_same_bits(got_c, want_c, "c");
}

TEST(MlstmSegments, ExtremeGatesStayFinite) {
  const Sizes z{1, 8, 8};
  Sequence s = random_sequence(z, 80, 8);
  for (int64_t t = 0; t < 80; ++t) {
    s.gates[static_cast<size_t>(2 * t)] = t % 3 == 0 ? 100.0f : -100.0f;
    s.gates[static_cast<size_t>(2 * t + 1)] = t % 2 == 0 ? 100.0f : -100.0f;
  }
  const auto got = Cell(z, 1).step({{s, 0, 0, 80}});
  expect_relative(host_tensor<float>({80, 1, 8}, got), reference(z, s, 80), 1e-5, "gates of +-100");
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(HeadNorm, IsTheGatedLayerNormOfEachHead) {
  for (const int64_t dim : {1, 3, 64, 97, 600})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const int64_t rows = 3, heads = 2;
      const Tensor x = random_normal({rows, heads, dim}, 1), gate = random_normal({rows, heads * dim + 5}, 2),
                   w = random_normal({heads * dim}, 3),
                   bias = random_normal({heads * dim}, 4).to(Dtype::bf16);
      const Tensor dx = x.to(test_device()), dg = gate.to(test_device()), dw = w.to(test_device()),
                   db = bias.to(test_device());
      Guarded y({rows, heads, dim}, dtype);
      const HeadNormArgs args{.x = dx.data_as<float>(),
                              .gate = dg.data_as<float>(),
                              .w = {dw.data(), Dtype::f32},
                              .bias = {db.data(), Dtype::bf16},
                              .y = y.data(),
                              .rows = rows,
                              .heads = heads,
                              .dim = dim,
                              .gate_stride = heads * dim + 5,
                              .eps = 1e-6f,
                              .y_dtype = dtype};
      call_kernel(test_device(), &Kernels::head_norm, "head_norm", nullptr, args);
      y.expect_intact("head_norm");
      std::vector<double> want;
      const auto biases = doubles_of(bias);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t h = 0; h < heads; ++h) {
          const float* from = x.data_as<float>() + (r * heads + h) * dim;
          double mean = 0, variance = 0;
          for (int64_t d = 0; d < dim; ++d) mean += double{from[d]} / static_cast<double>(dim);
          for (int64_t d = 0; d < dim; ++d)
            variance += (double{from[d]} - mean) * (double{from[d]} - mean) / static_cast<double>(dim);
          for (int64_t d = 0; d < dim; ++d) {
            const double normed = (double{from[d]} - mean) / std::sqrt(variance + 1e-6);
            const double opened = sigmoid(gate.data_as<float>()[r * (heads * dim + 5) + h * dim + d]);
            want.push_back(opened * (normed * double{w.data_as<float>()[h * dim + d]} +
                                     biases[static_cast<size_t>(h * dim + d)]));
          }
        }
      expect_relative(y.tensor(), want, dtype == Dtype::f32 ? 1e-6 : 4e-3, concat(dim, " ", dtype));
    }
}

TEST(SiluMul, GatesTheSecondHalfOfEachRow) {
  for (const int64_t dim : {1, 3, 16, 97})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      const Tensor x = random_normal({5, 2 * dim}, 1, 3), on_device = x.to(test_device());
      Guarded y({5, dim}, dtype);
      const SiluMulArgs args{on_device.data_as<float>(), y.data(), 5, dim, dtype};
      call_kernel(test_device(), &Kernels::silu_mul, "silu_mul", nullptr, args);
      y.expect_intact("silu_mul");
      std::vector<double> want;
      for (int64_t r = 0; r < 5; ++r)
        for (int64_t d = 0; d < dim; ++d) {
          const double gate = x.data_as<float>()[r * 2 * dim + d];
          want.push_back(gate * sigmoid(gate) * double{x.data_as<float>()[r * 2 * dim + dim + d]});
        }
      expect_relative(y.tensor(), want, dtype == Dtype::f32 ? 1e-6 : 4e-3, concat(dim, " ", dtype));
    }
}

TEST(SoftCap, IsCapTanhOfEveryValue) {
  std::vector<float> values = {0, -0.0f, 1e-30f, -1e-8f, 1e-4f, 15, -1000, INFINITY, -INFINITY, 3e38f};
  for (int i = -200; i < 200; ++i)
    values.push_back(static_cast<float>(std::exp(i * 0.05)) * (i % 2 ? 1 : -1));
  for (int shorter = 0; shorter < 4; ++shorter) {
    Guarded x({static_cast<int64_t>(values.size())}, Dtype::f32);
    const Tensor from = device_tensor<float>(x.tensor().shape(), values);
    const Device device = test_device();
    ASSERT_EQ(runtime(device).copy(device.index, nullptr, x.data(), from.data(), from.nbytes()), Status::ok);
    const SoftCapArgs args{static_cast<float*>(x.data()), from.numel(), 15};
    call_kernel(device, &Kernels::soft_cap, "soft_cap", nullptr, args);
    x.expect_intact("soft_cap");
    const auto got = values_of<float>(x.tensor());
    for (size_t i = 0; i < values.size(); ++i) {
      const double want = 15 * std::tanh(double{values[i]} / 15);
      EXPECT_LE(std::abs(double{got[i]} - want), 6e-7 * std::abs(want)) << values[i];
    }
    values.pop_back();
  }
}

TEST(SoftCap, KeepsANan) {
  const Tensor x = device_tensor<float>({1}, {NAN});
  const SoftCapArgs args{x.data_as<float>(), 1, 30};
  call_kernel(test_device(), &Kernels::soft_cap, "soft_cap", nullptr, args);
  EXPECT_TRUE(std::isnan(values_of<float>(x)[0]));
}

}  // namespace
}  // namespace trivium::testing
