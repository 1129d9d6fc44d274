// Looking for bad values in weights, and transposing experts.
#include "models/scan.h"

#include <atomic>
#include <cstring>
#include <limits>

#include "support/backend.h"
#include "support/inputs.h"

namespace trivium::testing {
namespace {

constexpr int64_t kChunk = 4 << 20;  // bytes one task scans

void expect_found(const Tensor& t, int64_t at) {
  LoadOptions options;
  expect_error<ModelFormatError>(
      [&] { WeightScan(options).dense(t, "a.safetensors", "w"); },
      {concat("a.safetensors: tensor \"w\" holds a NaN or an infinity at element ", at)});
  options.check_weights = false;
  WeightScan(options).dense(t, "a.safetensors", "w");
}

TEST(WeightScan, FindsTheFirstBadValueWhereverItStands) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    const int64_t chunk = kChunk / size_of(dtype), count = 2 * chunk + 77;
    Tensor t = Tensor::zeros({count}, dtype);
    const auto set = [&](int64_t at, bool bad, uint32_t bits) {
      const uint32_t value = bad ? bits : 0;
      std::memcpy(static_cast<char*>(t.data()) + at * size_of(dtype), &value,
                  static_cast<size_t>(size_of(dtype)));
    };
    const uint32_t infinity = dtype == Dtype::f32 ? 0x7f800000 : dtype == Dtype::bf16 ? 0x7f80 : 0x7c00;
    const uint32_t sign = dtype == Dtype::f32 ? 0x80000000 : 0x8000;
    for (const int64_t at : {int64_t{0}, int64_t{1}, chunk - 1, chunk, 2 * chunk + 76})
      for (const uint32_t bits : {infinity, infinity | sign, infinity | 1, infinity | sign | 1}) {
        set(at, true, bits);
        expect_found(t, at);
        set(count - 1, true, bits);  // a later one does not hide it
        expect_found(t, at);
        set(count - 1, false, 0);
        set(at, false, 0);
      }
    for (const uint32_t bits : {infinity - 1, sign | (infinity - 1), sign, 1u}) {
      set(5, true, bits);
      WeightScan(LoadOptions{}).dense(t, "a", "largest and smallest finite values");
    }
  }
}

TEST(WeightScan, ScalesStopAt252) {
  const LoadOptions options;
  Tensor t = Tensor::zeros({kChunk + 100}, Dtype::u8);
  uint8_t* p = t.data_as<uint8_t>();
  p[7] = 252;
  WeightScan(options).scales(t, "a", "s");
  for (const int64_t at : {int64_t{0}, kChunk - 1, kChunk, kChunk + 99})
    for (const int bad : {253, 254, 255}) {
      p[at] = static_cast<uint8_t>(bad);
      expect_error<ModelFormatError>(
          [&] { WeightScan(options).scales(t, "a", "s"); },
          {concat("a: tensor \"s\" holds scale ", bad, " at element ", at, ", expected at most 252")});
      p[at] = 0;
    }
}

TEST(WeightScan, ReportsProgressAndStopsWhenCancelled) {
  std::vector<std::pair<int64_t, int64_t>> calls;
  CancelToken token;
  LoadOptions options;
  options.cancel = &token;
  options.on_progress = [&](int64_t done, int64_t total) { calls.emplace_back(done, total); };
  WeightScan scan(options);
  scan.expect(100);
  scan.skip(10);
  scan.dense(Tensor::zeros({5}, Dtype::f32), "a", "w");
  scan.scales(Tensor::zeros({6}, Dtype::u8), "a", "s");
  scan.skip(90);
  EXPECT_EQ(calls, (std::vector<std::pair<int64_t, int64_t>>{{10, 100}, {30, 100}, {36, 100}, {126, 126}}));
  token.cancel();
  EXPECT_THROW(scan.skip(1), Cancelled);
}

TEST(TransposeExperts, SwapsRowsAndColumnsOfEveryExpert) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 1}, {31, 33}, {64, 5}, {32, 96}, {1, 40}, {0, 3}, {1500, 1025}}) {
      const Tensor stored = random_integers({3, rows, cols}, 1).to(dtype);
      std::atomic<int64_t> done{0};
      const Tensor got = transpose_experts(stored, [&](const Tensor& part) { done += part.nbytes(); });
      EXPECT_EQ(got.shape(), (Shape{3, cols, rows}));
      EXPECT_EQ(done, stored.nbytes());
      const auto from = doubles_of(stored), to = doubles_of(got);
      for (int64_t e = 0; e < 3; ++e)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c)
            ASSERT_EQ(to[static_cast<size_t>((e * cols + c) * rows + r)],
                      from[static_cast<size_t>((e * rows + r) * cols + c)]);
    }
}

TEST(CopyToMemory, CopiesAndReportsEveryByteOnce) {
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{5}, 3 * kChunk / 2000}) {
    Tensor stored = Tensor::empty({rows, 1000}, Dtype::bf16);
    auto* bits = static_cast<uint16_t*>(stored.data());
    for (int64_t i = 0; i < stored.numel(); ++i) bits[i] = static_cast<uint16_t>(i * 2654435761u >> 7);
    std::atomic<int64_t> reported{0};
    const Tensor copy = copy_to_memory(stored, [&](const Tensor& part) { reported += part.nbytes(); });
    EXPECT_EQ(reported, stored.nbytes());
    EXPECT_EQ(copy.shape(), stored.shape());
    EXPECT_NE(copy.data(), stored.data());
    EXPECT_EQ(std::memcmp(copy.data(), stored.data(), static_cast<size_t>(stored.nbytes())), 0) << rows;
  }
}

// As tensors lie in a file whose header has an odd length.
TEST(UnalignedTensors, AreScannedTransposedAndCopied) {
  const Tensor want = random_integers({2, 31, 33}, 1).to(Dtype::bf16);
  const Tensor memory = Tensor::empty({want.nbytes() + 1}, Dtype::u8);
  char* odd = static_cast<char*>(memory.data()) + 1;
  std::memcpy(odd, want.data(), static_cast<size_t>(want.nbytes()));
  const Tensor view = Tensor::wrap(odd, want.shape(), Dtype::bf16, Device{}, memory.owner(), {}, true);
  const auto ignore = [](const Tensor&) {};
  EXPECT_EQ(doubles_of(copy_to_memory(view, ignore)), doubles_of(want));
  EXPECT_EQ(doubles_of(transpose_experts(view, ignore)), doubles_of(transpose_experts(want, ignore)));
  WeightScan(LoadOptions{}).dense(view, "a", "w");
  odd[2 * 1000] = static_cast<char>(0x80), odd[2 * 1000 + 1] = 0x7f;
  expect_found(view, 1000);
}

// A task that is already cancelled must not work through a tensor of many chunks.
TEST(Cancelling, StopsInsideATensor) {
  const Tensor t = Tensor::zeros({1, 4096, 4096}, Dtype::f32);  // 16 chunks
  CancelToken token;
  LoadOptions options;
  options.cancel = &token;
  std::atomic<int> parts{0};
  const auto cancel_at_second = [&](const Tensor&) {
    if (++parts == 2) token.cancel();
  };
  EXPECT_THROW(copy_to_memory(t, cancel_at_second, &token), Cancelled);
  EXPECT_LT(parts, 16);
  parts = 0;
  token.reset();
  EXPECT_THROW(transpose_experts(t, cancel_at_second, &token), Cancelled);
  EXPECT_LT(parts, 16);
  // Whoever looked at the first chunk all the same would find this.
  t.data_as<float>()[0] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(WeightScan(options).dense(t, "a", "w"), Cancelled);
  EXPECT_THROW(touch_pages(t, &token), Cancelled);
}

TEST(TouchPages, ReadsTensorsOfAnySize) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4097}, kChunk + 1})
    touch_pages(Tensor::zeros({bytes}, Dtype::u8));
}

}  // namespace
}  // namespace trivium::testing
