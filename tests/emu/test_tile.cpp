// Tile products: MmaTile and FmaTile, every type, both warp sizes.
#include <cmath>

#include "cuda/tile.cuh"
#include "emu_support.h"
#include "support/inputs.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// y[16, 16] = a[rows_a, k] b[rows_b, k]^T by one warp, k a multiple of 32.
template <class Tile, class T>
GPU_KERNEL(64)
void product_kernel(const T* a, const T* b, float* y, int k, int rows_a, int rows_b) {
  if (warp_id() != 0) return;
  typename Tile::Acc acc{};
  for (int k0 = 0; k0 < k; k0 += 32)
    Tile::mma(acc, load_operand<Tile>(a + k0, k, rows_a), load_operand<Tile>(b + k0, k, rows_b));
  for (int i = 0; i < Tile::kAcc; ++i) {
    const Coord c = Tile::coord(i);
    y[c.row * 16 + c.col] = acc.x[i];
  }
}

// out[row] = (sum, maximum) of y[row, :], written by every lane that holds a part of the row.
template <class Tile>
GPU_KERNEL(64)
void row_reduction_kernel(const float* y, float* sums, float* maxima) {
  if (warp_id() != 0) return;
  typename Tile::Acc acc;
  for (int i = 0; i < Tile::kAcc; ++i) acc.x[i] = y[Tile::coord(i).row * 16 + Tile::coord(i).col];
  float sum[Tile::kAccRows], largest[Tile::kAccRows];
  Tile::row_sum(acc, sum);
  Tile::row_max(acc, largest);
  for (int i = 0; i < Tile::kAcc; ++i) {
    sums[Tile::coord(i).row * 16 + Tile::coord(i).col] = sum[Tile::acc_row(i)];
    maxima[Tile::coord(i).row * 16 + Tile::coord(i).col] = largest[Tile::acc_row(i)];
  }
}

template <class T>
std::vector<T> integers(size_t count, uint64_t seed) {
  testing::Random random(seed);
  std::vector<T> values(count);
  for (T& v : values) v = from_float<T>(static_cast<float>(random.integer(-4, 4)));
  return values;
}

template <class C>
class TileProduct : public ::testing::Test {};
template <class TileType, class T>
struct TileCase {
  using Tile = TileType;
  using Element = T;
};
using Cases = ::testing::Types<TileCase<MmaTile<bf16>, bf16>, TileCase<MmaTile<f16>, f16>,
                               TileCase<FmaTile<float>, float>, TileCase<FmaTile<bf16>, bf16>,
                               TileCase<FmaTile<f16>, f16>>;
TYPED_TEST_SUITE(TileProduct, Cases, );

TYPED_TEST(TileProduct, OfIntegersIsExact) {
  using Tile = typename TypeParam::Tile;
  using T = typename TypeParam::Element;
  for (const int k : {32, 96})
    for (const auto& [rows_a, rows_b] : {std::pair{16, 16}, {5, 16}, {16, 11}, {1, 1}}) {
      const auto a = integers<T>(16 * static_cast<size_t>(k), 1),
                 b = integers<T>(16 * static_cast<size_t>(k), 2);
      const Buffer<T> da(a), db(b);
      const Buffer<float> dy(256);
      run_block(64, product_kernel<Tile, T>, da.data(), db.data(), dy.data(), k, rows_a, rows_b);
      const auto y = dy.values();
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) {
          float want = 0;
          for (int l = 0; l < k; ++l)
            if (i < rows_a && j < rows_b)
              want +=
                  to_float(a[static_cast<size_t>(i * k + l)]) * to_float(b[static_cast<size_t>(j * k + l)]);
          ASSERT_EQ(y[static_cast<size_t>(i * 16 + j)], want)
              << i << ' ' << j << " of " << rows_a << ' ' << rows_b;
        }
    }
}

TYPED_TEST(TileProduct, NanAndZeroRowsStayInTheirRowsAndColumns) {
  using Tile = typename TypeParam::Tile;
  using T = typename TypeParam::Element;
  auto a = integers<T>(16 * 32, 3), b = integers<T>(16 * 32, 4);
  a[3 * 32 + 5] = from_float<T>(NAN);
  b[9 * 32 + 31] = from_float<T>(NAN);
  for (size_t j = 0; j < 32; ++j) a[6 * 32 + j] = from_float<T>(0);
  const Buffer<T> da(a), db(b);
  const Buffer<float> dy(256);
  run_block(64, product_kernel<Tile, T>, da.data(), db.data(), dy.data(), 32, 16, 16);
  const auto y = dy.values();
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 16; ++j) {
      ASSERT_EQ(std::isnan(y[i * 16 + j]), i == 3 || j == 9) << i << ' ' << j;
      if (i == 6 && j != 9) {
        ASSERT_EQ(y[i * 16 + j], 0);
      }
    }
}

TYPED_TEST(TileProduct, RowReductionsReachEveryLaneOfTheRow) {
  using Tile = typename TypeParam::Tile;
  const auto y = integers<float>(256, 5);
  const Buffer<float> dy(y), dsum(256), dmax(256);
  run_block(64, row_reduction_kernel<Tile>, dy.data(), dsum.data(), dmax.data());
  const auto sums = dsum.values(), maxima = dmax.values();
  for (size_t row = 0; row < 16; ++row) {
    float sum = 0, largest = -INFINITY;
    for (size_t j = 0; j < 16; ++j) {
      sum += y[row * 16 + j];
      largest = std::max(largest, y[row * 16 + j]);
    }
    for (size_t j = 0; j < 16; ++j) {
      ASSERT_EQ(sums[row * 16 + j], sum) << row << ' ' << j;
      ASSERT_EQ(maxima[row * 16 + j], largest) << row << ' ' << j;
    }
  }
}

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
