// Matrix products of one warp: acc[16, 16] += a[16, 32] b[16, 32]^T with float32 accumulation. Both operands
// are K-major, so that x w^T and q k^T load rows of 32 consecutive values.
//
// Tile<T, kMaxWarps = 8> is the widest unit an architecture has for T: MmaTile (tensor cores of sm_80 and
// later, MFMA of CDNA) for bf16 and f16, FmaTile elsewhere (float32 everywhere, every type on gfx10-12). All
// have the same members:
//
//   kRows                     operand rows a lane holds (2 on 32 lanes, 1 on 64)
//   Operand { T x[kRows][8] } x[r][j] = element (row(r), 8 * group() + j) of a 16 x 32 matrix. A product may
//                             take the 32 columns in any order as long as both operands use the same.
//   row(r), group()           of the calling lane; group is in [0, 4)
//   kAcc = 256 / kWarpSize, Acc { float x[kAcc] }, coord(i) -> {row, col} of x[i]
//   kAccRows, acc_row(i)      rows a lane's elements lie in, and which of them x[i] is in
//   mma(acc, a, b)            all lanes of the warp; the sum over k runs in one fixed order, and an element
//                             depends on its own row of a and row of b only
//   row_sum(acc, out), row_max(acc, out)   float out[kAccRows]: over the 16 columns, known to every lane of
//                             the row
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

struct Coord {
  int row, col;
};

// The operand at p: p[row * ld + 8 * group + j], 16-byte aligned rows. Rows from `rows` on are zeros and not
// read.
template <class Tile, class T>
GPU_DEVICE typename Tile::Operand load_operand(const T* p, int64_t ld, int rows = 16) {
  typename Tile::Operand o;
  constexpr int kStep = 16 / sizeof(T);
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    const int row = Tile::row(r);
    const T* from = p + row * ld + 8 * Tile::group();
#pragma unroll
    for (int j = 0; j < 8; j += kStep) {
      Vec<T, kStep> v{};
      if (row < rows) v = load_vec<kStep>(from + j);
#pragma unroll
      for (int i = 0; i < kStep; ++i) o.x[r][j + i] = v.x[i];
    }
  }
  return o;
}

// `Lanes` consecutive lanes (a power of two) hold the columns of an accumulator row.
template <class Tile, int Lanes>
struct RowReduction {
  template <class Fn>
  GPU_DEVICE static void run(const typename Tile::Acc& acc, float (&out)[Tile::kAccRows], float start,
                             Fn fn) {
#pragma unroll
    for (int r = 0; r < Tile::kAccRows; ++r) out[r] = start;
#pragma unroll
    for (int i = 0; i < Tile::kAcc; ++i) out[Tile::acc_row(i)] = fn(out[Tile::acc_row(i)], acc.x[i]);
#pragma unroll
    for (int r = 0; r < Tile::kAccRows; ++r)
#pragma unroll
      for (int m = 1; m < Lanes; m *= 2) out[r] = fn(out[r], shfl_xor(out[r], m));
  }
};

// Plain multiply-adds through kMaxWarps * 4.5 KiB of shared memory: every lane computes 2 rows of the result.
template <class T, int kMaxWarps = 8>
struct FmaTile {
  static constexpr int kRows = 64 / kWarpSize, kAcc = 256 / kWarpSize, kAccRows = 2;
  static constexpr int kCols = kAcc / 2, kLanesPerRow = 16 / kCols;
  static constexpr int kPitch = 36;  // floats: rows start 4 banks apart and stay 16-byte aligned
  struct Operand {
    T x[kRows][8];
  };
  struct Acc {
    float x[kAcc];
  };
  GPU_DEVICE static int row(int r) { return lane_id() / 4 + 8 * r; }
  GPU_DEVICE static int group() { return lane_id() % 4; }
  GPU_DEVICE static int acc_row(int i) { return i / kCols; }
  GPU_DEVICE static Coord coord(int i) {
    return {2 * (lane_id() / kLanesPerRow) + i / kCols, kCols * (lane_id() % kLanesPerRow) + i % kCols};
  }

  // Blocks of at most kMaxWarps * 32 threads.
  GPU_DEVICE static void mma(Acc& acc, const Operand& a, const Operand& b) {
    GPU_SHARED(float, scratch, kMaxWarps * 32 * kPitch);
    float* sa = scratch + warp_id() * 32 * kPitch;
    float* sb = sa + 16 * kPitch;
    sync_warp();  // the previous product has been read
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sa[row(r) * kPitch + 8 * group() + j] = to_float(a.x[r][j]);
        sb[row(r) * kPitch + 8 * group() + j] = to_float(b.x[r][j]);
      }
    sync_warp();
    const Coord at = coord(0);
#pragma unroll 2
    for (int k = 0; k < 32; k += 4) {
      Vec<float, 4> va[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) va[r] = load_vec<4>(sa + (at.row + r) * kPitch + k);
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        const Vec<float, 4> vb = load_vec<4>(sb + (at.col + c) * kPitch + k);
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int j = 0; j < 4; ++j) acc.x[r * kCols + c] = fma(va[r].x[j], vb.x[j], acc.x[r * kCols + c]);
      }
    }
  }
  GPU_DEVICE static void row_sum(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<FmaTile, kLanesPerRow>::run(acc, out, 0.0f, [](float x, float y) { return x + y; });
  }
  GPU_DEVICE static void row_max(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<FmaTile, kLanesPerRow>::run(acc, out, -INFINITY, [](float x, float y) { return max(x, y); });
  }
};

}  // namespace trivium::TRIVIUM_GPU_NS

// Each gives MmaTile<T> for T = bf16, f16 and defines TRIVIUM_GPU_MMA to 1; an architecture without matrix
// instructions of ours gets FmaTile for every type.
#if defined(TRIVIUM_GPU_EMU)
#include "emu/tile_emu.h"
#elif defined(TRIVIUM_GPU_HIP)
#include "hip/tile_cdna.h"
#else
#include "cuda/tile_sm80.cuh"
#endif

namespace trivium::TRIVIUM_GPU_NS {

template <class T, int kMaxWarps>
struct TileOf {
  using type = FmaTile<T, kMaxWarps>;
};
#if TRIVIUM_GPU_MMA
template <int kMaxWarps>
struct TileOf<bf16, kMaxWarps> {
  using type = MmaTile<bf16>;
};
template <int kMaxWarps>
struct TileOf<f16, kMaxWarps> {
  using type = MmaTile<f16>;
};
#endif
// For blocks of at most kMaxWarps * 32 threads.
template <class T, int kMaxWarps = 8>
using Tile = typename TileOf<T, kMaxWarps>::type;

}  // namespace trivium::TRIVIUM_GPU_NS
