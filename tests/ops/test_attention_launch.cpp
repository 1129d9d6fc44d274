// Attention rows in every company: whatever else a launch holds, and however it cuts the work, a row's bits
// are those of the row alone. Keys lie in pages shuffled over a pool whose other bytes are NaN.
#include <limits>
#include <numeric>

#include "ops/ops.h"
#include "support/compare.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

// Sequences in slots of a paged cache, and rows (slot, position) that look at them.
struct Batch {
  int64_t group, kv_heads, dim, window = 0, page_size = 16;
  Dtype kv = Dtype::bf16, out = Dtype::bf16;
  std::vector<int32_t> lengths = {};                // of the slots
  std::vector<int32_t> slots = {}, positions = {};  // of the rows
  bool sinks = true;

  int64_t heads() const { return group * kv_heads; }
  int64_t rows() const { return static_cast<int64_t>(slots.size()); }
  int64_t row_size() const { return heads() * dim; }
  int64_t blocks() const {
    return (*std::max_element(lengths.begin(), lengths.end()) + page_size - 1) / page_size;
  }
  std::string name() const {
    return concat("group ", group, ", head_dim ", dim, ", window ", window, ", page ", page_size, ", ", kv,
                  " to ", out);
  }
};

struct Cache {
  Tensor k, v, table;  // host; k and v are float32 with values of the cache's dtype
};

// Element of the cache where a key or value of a slot begins.
int64_t place(const Batch& b, const Cache& c, int64_t slot, int64_t position, int64_t head) {
  const int64_t page = c.table.data_as<int32_t>()[slot * b.blocks() + position / b.page_size];
  return ((page * b.kv_heads + head) * b.page_size + position % b.page_size) * b.dim;
}

Cache make_cache(const Batch& b) {
  const auto slots = static_cast<int64_t>(b.lengths.size()), pages = slots * b.blocks() + 3;
  Cache c;
  c.table = Tensor::empty({slots, b.blocks()}, Dtype::i32);
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  Random random(7);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
  std::copy_n(order.begin(), c.table.numel(), c.table.data_as<int32_t>());
  const Shape shape{pages, b.kv_heads, b.page_size, b.dim};
  c.k = Tensor::empty(shape, Dtype::f32), c.v = Tensor::empty(shape, Dtype::f32);
  std::fill_n(c.k.data_as<float>(), c.k.numel(), NAN), std::fill_n(c.v.data_as<float>(), c.v.numel(), NAN);
  for (int64_t s = 0; s < slots; ++s)
    for (int64_t p = 0; p < b.lengths[static_cast<size_t>(s)]; ++p)
      for (int64_t h = 0; h < b.kv_heads; ++h)
        for (int64_t d = 0; d < b.dim; ++d) {
          const int64_t at = place(b, c, s, p, h) + d;
          c.k.data_as<float>()[at] = to_float(to_bf16(static_cast<float>(random.normal())));
          c.v.data_as<float>()[at] = to_float(to_bf16(static_cast<float>(random.normal())));
        }
  return c;
}

Tensor queries(const Batch& b) {  // values of bf16, so that rounding them again changes nothing
  return random_normal({b.rows(), b.heads(), b.dim}, 5).to(Dtype::bf16).to(Dtype::f32);
}
Tensor sinks_of(const Batch& b) { return random_normal({b.heads()}, 6); }

// Rows [first, first + count) of the batch as one launch.
std::vector<float> run(const Batch& b, const Cache& c, const Tensor& q, int64_t first, int64_t count,
                       bool workspace) {
  const Device d = test_device();
  const Tensor k = c.k.to(b.kv).to(d), v = c.v.to(b.kv).to(d), table = c.table.to(d),
               rows = q.slice(first, first + count).to(d), sinks = sinks_of(b).to(d),
               slots = device_tensor<int32_t>({count},
                                              {b.slots.begin() + first, b.slots.begin() + first + count}),
               positions = device_tensor<int32_t>(
                   {count}, {b.positions.begin() + first, b.positions.begin() + first + count});
  Guarded out({count, b.heads(), b.dim}, b.out),
      work({workspace ? attention_workspace(count, b.heads(), b.dim) : 0}, Dtype::f32);
  const AttentionArgs args{.q = rows.data_as<float>(),
                           .kv = {k.data(), v.data(), table.data_as<int32_t>(),
                                  static_cast<int32_t>(b.blocks()), static_cast<int32_t>(b.page_size), b.kv},
                           .slots = slots.data_as<int32_t>(),
                           .positions = positions.data_as<int32_t>(),
                           .sinks = {b.sinks ? sinks.data() : nullptr, Dtype::f32},
                           .out = out.data(),
                           .tokens = count,
                           .num_heads = b.heads(),
                           .num_kv_heads = b.kv_heads,
                           .head_dim = b.dim,
                           .q_stride = b.row_size(),
                           .window = b.window,
                           .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(b.dim))),
                           .out_dtype = b.out,
                           .workspace = workspace ? static_cast<float*>(work.data()) : nullptr};
  call_kernel(d, &Kernels::attention, "attention", nullptr, args);
  out.expect_intact("out"), work.expect_intact("workspace");
  return values_of<float>(out.tensor().to(Dtype::f32));
}

std::vector<double> reference(const Batch& b, const Cache& c, const Tensor& q) {
  std::vector<double> out(static_cast<size_t>(q.numel()));
  const Tensor sinks = sinks_of(b);
  for (int64_t t = 0; t < b.rows(); ++t)
    for (int64_t h = 0; h < b.heads(); ++h) {
      const int64_t p = b.positions[static_cast<size_t>(t)], slot = b.slots[static_cast<size_t>(t)],
                    first = b.window ? std::max<int64_t>(0, p - b.window + 1) : 0;
      std::vector<double> scores;
      for (int64_t j = first; j <= p; ++j) {
        const int64_t at = place(b, c, slot, j, h / b.group);
        double s = 0;
        for (int64_t d = 0; d < b.dim; ++d)
          s += static_cast<double>(q.data_as<float>()[t * b.row_size() + h * b.dim + d]) *
               static_cast<double>(c.k.data_as<float>()[at + d]);
        scores.push_back(s / std::sqrt(static_cast<double>(b.dim)));
      }
      const double sink = static_cast<double>(sinks.data_as<float>()[h]);
      double maximum = *std::max_element(scores.begin(), scores.end());
      if (b.sinks) maximum = std::max(maximum, sink);
      double total = b.sinks ? std::exp(sink - maximum) : 0;
      double* o = &out[static_cast<size_t>(t * b.row_size() + h * b.dim)];
      for (int64_t j = first; j <= p; ++j) {
        const double weight = std::exp(scores[static_cast<size_t>(j - first)] - maximum);
        total += weight;
        const float* value = c.v.data_as<float>() + place(b, c, slot, j, h / b.group);
        for (int64_t d = 0; d < b.dim; ++d) o[d] += weight * static_cast<double>(value[d]);
      }
      for (int64_t d = 0; d < b.dim; ++d) o[d] /= total;
    }
  return out;
}

// float32: as in test_attention.cpp. bf16: weights and results rounded to 2^-9, sums of float32.
Bounds bounds_of(const Batch& b) { return b.out == Dtype::bf16 ? kBf16 : Bounds{1e-10, 1e-5}; }

// The batch against the definition, with and without a workspace, and each of its rows alone.
void check(const Batch& b) {
  const Cache c = make_cache(b);
  const Tensor q = queries(b);
  const auto together = run(b, c, q, 0, b.rows(), true);
  expect_close(host_tensor<float>(q.shape(), together), reference(b, c, q), bounds_of(b), b.name());
  expect_same_bits(run(b, c, q, 0, b.rows(), false), together, b.name() + ", no workspace");
  const auto size = static_cast<size_t>(b.row_size());
  for (int64_t t = 0; t < b.rows(); ++t)
    expect_same_bits(run(b, c, q, t, 1, t % 2 == 0),
                     std::span(together).subspan(static_cast<size_t>(t) * size, size),
                     concat(b.name(), ", row ", t, " alone"));
}

// A prompt's rows among decode rows of other sequences, in any order, twice the same, far apart in one slot.
Batch mixed(int64_t group, int64_t kv_heads, int64_t dim) {
  return {.group = group,
          .kv_heads = kv_heads,
          .dim = dim,
          .lengths = {200, 70, 1},
          .slots = {0, 0, 0, 1, 2, 0, 0, 1, 0, 0, 1, 1},
          .positions = {0, 1, 2, 69, 0, 198, 199, 10, 63, 64, 69, 5}};
}

TEST(AttentionLaunch, RowsHaveTheBitsOfTheRowAlone) {
  for (const int64_t window : {0, 7, 128})
    for (const Dtype out : {Dtype::bf16, Dtype::f32}) {
      Batch b = mixed(8, 2, 64);
      b.window = window, b.out = out;
      check(b);
    }
}

TEST(AttentionLaunch, EveryGroupOfHeadsFillsItsTiles) {
  for (const int64_t group : {1, 3, 5, 16, 20}) {
    Batch b = mixed(group, 1, 16);
    b.page_size = 5, b.sinks = group != 5;
    check(b);
  }
}

TEST(AttentionLaunch, EveryHeadSizeUpTo256) {
  for (const int64_t dim : {2, 6, 36, 96, 128, 200, 256})
    for (const Dtype kv : {Dtype::bf16, Dtype::f32}) {
      Batch b = mixed(4, 1, dim);
      b.lengths = {70}, b.slots = {0, 0, 0}, b.positions = {3, 68, 69};
      b.kv = kv, b.out = kv;
      check(b);
    }
}

// Above 1024 positions a split has several blocks of keys; windows above 256 have several splits.
TEST(AttentionLaunch, LongSequencesAreSplitByPositionAlone) {
  for (const int64_t window : {0, 300, 1100})
    for (const Dtype out : {Dtype::bf16, Dtype::f32}) {
      Batch b{.group = 8, .kv_heads = 1, .dim = 32, .window = window, .lengths = {2100, 1100}};
      b.out = out;
      b.slots = {0, 0, 1, 1, 0, 0}, b.positions = {1023, 1024, 1023, 1099, 2098, 2099};
      check(b);
    }
}

// More rows than a launch splits (1024): the same bits with a workspace as with few rows.
TEST(AttentionLaunch, ManyRowsHaveTheBitsOfFew) {
  Batch b{.group = 2, .kv_heads = 1, .dim = 8, .out = Dtype::f32, .lengths = {300, 290}};
  for (int32_t t = 0; t < 1100; ++t) b.slots.push_back(t % 3 == 0), b.positions.push_back(t * 7 % 290);
  const Cache c = make_cache(b);
  const Tensor q = queries(b);
  const auto all = run(b, c, q, 0, b.rows(), true);
  const auto size = static_cast<size_t>(b.row_size());
  for (const int64_t t : {0, 40, 550, 1076})  // 1, 5, 2 and 5 blocks of keys
    expect_same_bits(run(b, c, q, t, 2, true),
                     std::span(all).subspan(static_cast<size_t>(t) * size, 2 * size),
                     concat("rows ", t, " and ", t + 1));
}

TEST(AttentionLaunch, WhatARowDoesNotSeeCannotReachIt) {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const Dtype out : {Dtype::bf16, Dtype::f32})
      for (const bool in_value : {false, true}) {
        Batch b = mixed(8, 1, 64);
        b.out = out, b.window = 6;
        Cache c = make_cache(b);
        const Tensor q = queries(b);
        const auto clean = run(b, c, q, 0, b.rows(), true);
        const int64_t position = 64, slot = 0, at = place(b, c, slot, position, 0) + 3;
        (in_value ? c.v : c.k).data_as<float>()[at] = poison;
        const auto got = run(b, c, q, 0, b.rows(), true);
        for (int64_t t = 0; t < b.rows(); ++t) {
          const int64_t p = b.positions[static_cast<size_t>(t)];
          const bool sees =
              b.slots[static_cast<size_t>(t)] == slot && p >= position && p - position < b.window;
          const auto size = static_cast<size_t>(b.row_size());
          const auto row = std::span(got).subspan(static_cast<size_t>(t) * size, size);
          if (!sees)
            expect_same_bits(row, std::span(clean).subspan(static_cast<size_t>(t) * size, size),
                             concat("row ", t, " does not see the poison"));
          else if (in_value)
            EXPECT_FALSE(std::isfinite(row[3]) || !std::isfinite(row[4]))
                << "row " << t << " sees the poison";
          else if (std::isnan(poison))
            expect_all_nan(row, concat("row ", t, " sees the poison"));
        }
      }
}

TEST(AttentionLaunch, ArgumentsAGpuCannotServeAreRefusedInOneSentence) {
  if (!is_gpu(test_device().kind)) GTEST_SKIP() << "the CPU takes every head size";
  for (const int64_t dim : {258, 7}) {
    const Device d = test_device();
    const Tensor q = Tensor::zeros({1, 1, dim}, Dtype::f32).to(d);
    expect_error([&] { ops::attention(q, q, q, {}, 0, 1.0f); },
                 {"head_dim is", std::to_string(dim), "even number up to 256"});
  }
}

}  // namespace
}  // namespace trivium::testing
