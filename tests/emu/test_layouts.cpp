// Lane layouts: every map of the tiles is a bijection, and the emulated instructions hold to tables typed
// from the vendors' manuals.
#include <set>

#include "cuda/tile.cuh"
#include "emu_support.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// out[lane * kAcc + i] = where x[i] lies in the row-major 16 x 16 result.
template <class Tile>
GPU_KERNEL(64)
void accumulator_map_kernel(int* out) {
  if (warp_id() != 0) return;
  for (int i = 0; i < Tile::kAcc; ++i) {
    const Coord c = Tile::coord(i);
    out[lane_id() * Tile::kAcc + i] = c.row * 16 + c.col;
  }
}

template <class Tile>
GPU_KERNEL(64)
void operand_map_kernel(int* out) {
  if (warp_id() != 0) return;
  for (int r = 0; r < Tile::kRows; ++r)
    for (int j = 0; j < 8; ++j)
      out[(lane_id() * Tile::kRows + r) * 8 + j] = Tile::row(r) * 32 + 8 * Tile::group() + j;
}

template <class Tile>
GPU_KERNEL(64)
void accumulator_row_kernel(int* same) {
  if (warp_id() != 0) return;
  bool ok = true;
  for (int i = 0; i < Tile::kAcc; ++i)
    for (int j = 0; j < Tile::kAcc; ++j)
      ok = ok && (Tile::coord(i).row == Tile::coord(j).row) == (Tile::acc_row(i) == Tile::acc_row(j)) &&
           Tile::acc_row(i) < Tile::kAccRows;
  same[lane_id()] = ok;
}

template <class Tile>
class TileLayout : public ::testing::Test {};
using Tiles = ::testing::Types<MmaTile<bf16>, MmaTile<f16>, FmaTile<float>, FmaTile<bf16>>;
TYPED_TEST_SUITE(TileLayout, Tiles, );

void expect_each_once(const std::vector<int>& map, size_t count) {
  ASSERT_EQ(map.size(), count);
  const std::set<int> seen(map.begin(), map.end());
  EXPECT_EQ(seen.size(), count);
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), static_cast<int>(count) - 1);
}

TYPED_TEST(TileLayout, AccumulatorMapIsABijection) {
  const Buffer<int> out(256);
  run_block(64, accumulator_map_kernel<TypeParam>, out.data());
  expect_each_once(out.values(), 256);
}

TYPED_TEST(TileLayout, OperandMapIsABijection) {
  const Buffer<int> out(512);
  run_block(64, operand_map_kernel<TypeParam>, out.data());
  expect_each_once(out.values(), 512);
}

TYPED_TEST(TileLayout, ElementsOfOneRowShareTheirRowIndex) {
  const Buffer<int> same(std::vector<int>(kWarpSize, 0));
  run_block(64, accumulator_row_kernel<TypeParam>, same.data());
  EXPECT_EQ(same.values(), std::vector<int>(kWarpSize, 1));
}

// Who holds an element of a matrix: lane and index in its fragment.
struct Holder {
  int lane, element;
};

#if TRIVIUM_EMU_WARP == 32
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": the lanes as its figures print them,
// each cell two elements wide.
constexpr int kFigureA[16][8] = {  // rows of A; cells are pairs of columns
    {0, 1, 2, 3, 0, 1, 2, 3},         {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},
    {12, 13, 14, 15, 12, 13, 14, 15}, {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23},
    {24, 25, 26, 27, 24, 25, 26, 27}, {28, 29, 30, 31, 28, 29, 30, 31}, {0, 1, 2, 3, 0, 1, 2, 3},
    {4, 5, 6, 7, 4, 5, 6, 7},         {8, 9, 10, 11, 8, 9, 10, 11},     {12, 13, 14, 15, 12, 13, 14, 15},
    {16, 17, 18, 19, 16, 17, 18, 19}, {20, 21, 22, 23, 20, 21, 22, 23}, {24, 25, 26, 27, 24, 25, 26, 27},
    {28, 29, 30, 31, 28, 29, 30, 31}};
constexpr int kFirstOfA[2][2] = {{0, 4}, {2, 6}};  // a0 or a4 in the upper rows, a2 or a6 in the lower
constexpr int kFigureB[8][8] = {                   // cells are pairs of rows
    {0, 4, 8, 12, 16, 20, 24, 28},  {1, 5, 9, 13, 17, 21, 25, 29}, {2, 6, 10, 14, 18, 22, 26, 30},
    {3, 7, 11, 15, 19, 23, 27, 31}, {0, 4, 8, 12, 16, 20, 24, 28}, {1, 5, 9, 13, 17, 21, 25, 29},
    {2, 6, 10, 14, 18, 22, 26, 30}, {3, 7, 11, 15, 19, 23, 27, 31}};
constexpr int kFirstOfB[2] = {0, 2};
constexpr int kFigureC[16][4] = {  // cells are pairs of columns
    {0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
    {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31},
    {0, 1, 2, 3},     {4, 5, 6, 7},     {8, 9, 10, 11},   {12, 13, 14, 15},
    {16, 17, 18, 19}, {20, 21, 22, 23}, {24, 25, 26, 27}, {28, 29, 30, 31}};
constexpr int kFirstOfC[2] = {0, 2};

constexpr int kA = 8, kB = 4, kColumns = 8;
Holder holder_of_a(int row, int k) { return {kFigureA[row][k / 2], kFirstOfA[row / 8][k / 8] + k % 2}; }
Holder holder_of_b(int k, int col) { return {kFigureB[k / 2][col], kFirstOfB[k / 8] + k % 2}; }
Holder holder_of_c(int row, int col) { return {kFigureC[row][col / 2], kFirstOfC[row / 8] + col % 2}; }
template <class T>
GPU_DEVICE void instruction(float (&c)[4], const T (&a)[kA], const T (&b)[kB]) {
  mma_m16n8k16(c, a, b);
}
#else
// AMD CDNA2 and CDNA3 instruction set manuals, v_mfma_f32_16x16x16 of f16 and bf16: the lane that holds four
// elements.
constexpr int kFigureA[16][4] = {  // rows of A; cells are k = 0..3, 4..7, 8..11, 12..15
    {0, 16, 32, 48},  {1, 17, 33, 49},  {2, 18, 34, 50},  {3, 19, 35, 51}, {4, 20, 36, 52},  {5, 21, 37, 53},
    {6, 22, 38, 54},  {7, 23, 39, 55},  {8, 24, 40, 56},  {9, 25, 41, 57}, {10, 26, 42, 58}, {11, 27, 43, 59},
    {12, 28, 44, 60}, {13, 29, 45, 61}, {14, 30, 46, 62}, {15, 31, 47, 63}};
constexpr int kFigureB[4][16] = {  // cells are four k of a column
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
    {32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47},
    {48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63}};
constexpr int kFigureC[4][16] = {  // cells are four rows of a column
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31},
    {32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47},
    {48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63}};

constexpr int kA = 4, kB = 4, kColumns = 16;
Holder holder_of_a(int row, int k) { return {kFigureA[row][k / 4], k % 4}; }
Holder holder_of_b(int k, int col) { return {kFigureB[k / 4][col], k % 4}; }
Holder holder_of_c(int row, int col) { return {kFigureC[row / 4][col], row % 4}; }
template <class T>
GPU_DEVICE void instruction(float (&c)[4], const T (&a)[kA], const T (&b)[kB]) {
  mfma_16x16x16(c, a, b);
}
#endif

// d = a b + c, each lane with its own fragments.
template <class T>
GPU_KERNEL(64)
void instruction_kernel(const T* a, const T* b, const float* c, float* d) {
  if (warp_id() != 0) return;
  T fa[kA], fb[kB];
  float fc[4];
  for (int i = 0; i < kA; ++i) fa[i] = a[lane_id() * kA + i];
  for (int i = 0; i < kB; ++i) fb[i] = b[lane_id() * kB + i];
  for (int i = 0; i < 4; ++i) fc[i] = c[lane_id() * 4 + i];
  instruction(fc, fa, fb);
  for (int i = 0; i < 4; ++i) d[lane_id() * 4 + i] = fc[i];
}

// The fragments of a matrix, one lane after the other. Fails when an element is held twice or not at all.
template <class T, class Value, class HolderOf>
std::vector<T> fragments(int rows, int columns, int count, Value value, HolderOf holder_of) {
  const auto size = static_cast<size_t>(kWarpSize * count);
  std::vector<T> held(size);
  std::set<size_t> seen;
  for (int row = 0; row < rows; ++row)
    for (int col = 0; col < columns; ++col) {
      const Holder h = holder_of(row, col);
      const auto at = static_cast<size_t>(h.lane * count + h.element);
      held.at(at) = from_float<T>(value(row, col));
      seen.insert(at);
    }
  EXPECT_EQ(seen.size(), static_cast<size_t>(rows * columns));
  EXPECT_EQ(seen.size(), size);
  return held;
}

template <class T>
void check_instruction() {
  // Small integers that tell row from column: sums stay below 2^24 and are exact.
  const auto a_of = [](int row, int k) { return static_cast<float>((row * 5 + k * 3) % 17 - 8); };
  const auto b_of = [](int k, int col) { return static_cast<float>((k * 7 + col * 2) % 13 - 6); };
  const auto c_of = [](int row, int col) { return static_cast<float>(row * 100 + col); };
  const Buffer<T> a(fragments<T>(16, 16, kA, a_of, holder_of_a)),
      b(fragments<T>(16, kColumns, kB, b_of, holder_of_b));
  const Buffer<float> c(fragments<float>(16, kColumns, 4, c_of, holder_of_c)), d(kWarpSize * 4);
  run_block(64, instruction_kernel<T>, a.data(), b.data(), c.data(), d.data());
  const auto got = d.values();
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < kColumns; ++col) {
      float want = c_of(row, col);
      for (int k = 0; k < 16; ++k) want += a_of(row, k) * b_of(k, col);
      const Holder h = holder_of_c(row, col);
      ASSERT_EQ(got[static_cast<size_t>(h.lane * 4 + h.element)], want)
          << "row " << row << ", column " << col;
    }
}

TEST(Instruction, Bf16FollowsTheManualsTables) { check_instruction<bf16>(); }
TEST(Instruction, F16FollowsTheManualsTables) { check_instruction<f16>(); }

}  // namespace
}  // namespace trivium::TRIVIUM_GPU_NS
