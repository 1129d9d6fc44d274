// The item functions of LUT kernels on a table of 2^33 weights, of which two rows exist: the origin lies that
// far before them. An offset cut to 32 bits, signed or not, misses the buffer.
#include "cuda/lut.cuh"
#include "emu_support.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int32_t kOutputs = 8, kCell = (1 << 30) - 2;  // row kCell and the one its lowest bit leads to
constexpr int64_t kFar = int64_t{kCell} * kOutputs;

float* far_before(const Buffer<float>& rows) {
  return reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(rows.data()) - sizeof(float) * kFar);
}

std::vector<float> two_rows() {
  std::vector<float> w(2 * kOutputs);
  for (size_t k = 0; k < w.size(); ++k) w[k] = static_cast<float>(k + 1);
  return w;
}
std::vector<float> first_row() {
  const auto w = two_rows();
  return {w.begin(), w.begin() + kOutputs};
}

struct FarTable {
  Buffer<float> rows{two_rows()};
  Buffer<int64_t> pointers{std::vector<int64_t>{0, kOutputs}}, starts;
  Buffer<int32_t> targets{std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}};
  Buffer<LutReach> reach;

  FarTable()
      : starts(std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}),
        reach(std::vector<LutReach>{{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 4}, {0, 5}, {0, 6}, {0, 7}}) {}
  LutTable table(LutForm form) const {
    return {far_before(rows), pointers.data(), targets.data(), 1, int64_t{1} << 30, kOutputs, form,
            kOutputs,         starts.data(),   reach.data()};
  }
};

// The pair of positions 0 and 1 addresses kCell: Nc 14, Npe 2.
struct FarPair {
  Buffer<int32_t> index{std::vector<int32_t>{(kCell >> 2) & 0x3fff, kCell >> 16}},
      pe_index{std::vector<int32_t>{kCell & 3}};
  Buffer<int32_t> least{std::vector<int32_t>{-1, -1}}, pe_least{std::vector<int32_t>{0}};
  Buffer<float> u{std::vector<float>{0, 0}}, pe_u{std::vector<float>{0}};

  LutSequence sequence() const {
    return {index.data(), u.data(), least.data(), pe_index.data(), pe_u.data(), pe_least.data(), 1, 2, 14, 2};
  }
};

template <class Args>
void run_items(void (*launcher)(Stream, const Args&, int64_t), const Args& a, int64_t count) {
  const Queue queue;
  launcher(queue.get(), a, count);
  queue.synchronize();
}

TEST(LutOffsets, OutputsReadRowsBeyond32Bits) {
  const FarTable far;
  const Buffer<int32_t> index(std::vector<int32_t>{kCell});
  for (const LutForm form : {LutForm::fully_connected, LutForm::shared}) {
    const Buffer<float> y(std::vector<float>(kOutputs, -1.0f));
    run_items<LutForwardArgs>(launch_items<LutForwardArgs, lut::fill_outputs_item<false>>,
                              {far.table(form), index.data(), y.data(), 1, {}, 0}, kOutputs);
    EXPECT_EQ(y.values(), first_row());
  }
}

TEST(LutOffsets, PairsReadRowsBeyond32Bits) {
  const FarTable far;
  const FarPair pair;
  auto want = std::vector<float>(kOutputs, 0.0f);
  for (const float w : first_row()) want.push_back(w);
  for (const LutForm form : {LutForm::fully_connected, LutForm::shared}) {
    const Buffer<float> y(std::vector<float>(2 * kOutputs, -1.0f));
    run_items<LutSequenceForwardArgs>(
        launch_items<LutSequenceForwardArgs, lut::fill_outputs_for_sequence_item<false>>,
        {far.table(form), pair.sequence(), y.data(), {}}, 2 * kOutputs);
    EXPECT_EQ(y.values(), want);
  }
}

TEST(LutOffsets, DecodingReadsRowsBeyond32Bits) {
  const FarTable far;
  const FarPair pair;
  const Buffer<int32_t> slots(std::vector<int32_t>{0}), positions(std::vector<int32_t>{1}),
      cache(std::vector<int32_t>{(kCell >> 2) & 0x3fff, 0});
  for (const LutForm form : {LutForm::fully_connected, LutForm::shared}) {
    const Buffer<float> y(std::vector<float>(kOutputs, -1.0f));
    const LutDecodeArgs args{far.table(form),
                             pair.index.data() + 1,
                             slots.data(),
                             positions.data(),
                             pair.pe_index.data(),
                             cache.data(),
                             y.data(),
                             1,
                             2,
                             1,
                             {},
                             14,
                             2,
                             0};
    run_items<LutDecodeArgs>(launch_items<LutDecodeArgs, lut::decode_item<false>>, args, kOutputs);
    EXPECT_EQ(y.values(), first_row());
  }
}

GPU_KERNEL(64) void far_dots_kernel(LutTable w, const float* gy, float* dots) {
  const float dot = group_dot<false>(w, lut::row_of(w, 0, kCell + static_cast<int>(threadIdx.x) / 32), gy);
  if (lut_lane() == 0) dots[threadIdx.x / 32] = dot;
}

TEST(LutOffsets, DotProductsReadRowsBeyond32Bits) {
  const FarTable far;
  const Buffer<float> gy(std::vector<float>{1, 0, 0, 0, 0, 0, 0, 2}), dots(2);
  for (const LutForm form : {LutForm::fully_connected, LutForm::shared}) {
    run_block(64, far_dots_kernel, far.table(form), static_cast<const float*>(gy.data()), dots.data());
    EXPECT_EQ(dots.values(), (std::vector<float>{1 + 2 * 8, 9 + 2 * 16}));
  }
}

GPU_KERNEL(64) void far_w_kernel(LutWGradientArgs a) {
  lut::gather_w_gradients_item<false>(a, {0, kCell, kCell + 2, threadIdx.x, 64});
}
GPU_KERNEL(64) void far_pair_w_kernel(LutSequenceWGradientArgs a) {
  // Owns the rows of the later position's index alone, which are more than exist: it only adds.
  lut::add_w_gradient<false>(a.table, a.target, a.numerics, {0, 0, 0, threadIdx.x, 64},
                             lut::cell_at(a.sequence, 1, 0, 0, 1, 0), a.gy, 1);
}

TEST(LutOffsets, WeightGradientsAreWrittenBeyond32Bits) {
  const FarTable far;
  const FarPair pair;
  const Buffer<int32_t> index(std::vector<int32_t>{kCell});
  const Buffer<float> gy(first_row());
  auto want = first_row();
  want.resize(2 * kOutputs, 0.0f);
  for (const LutForm form : {LutForm::fully_connected, LutForm::shared}) {
    const Buffer<float> gw(std::vector<float>(2 * kOutputs, -1.0f));
    LutWeightTarget target{};
    target.out = far_before(gw);
    target.rate = 1;
    run_block(64, far_w_kernel, LutWGradientArgs{far.table(form), gy.data(), index.data(), target, 1, {}});
    EXPECT_EQ(gw.values(), want);
    run_block(64, far_pair_w_kernel,
              LutSequenceWGradientArgs{far.table(form), pair.sequence(), gy.data(), target, {}});
    auto twice = want;
    for (float& g : twice) g *= 2;
    EXPECT_EQ(gw.values(), twice);
  }
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
