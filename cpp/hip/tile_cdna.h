// MmaTile on 64 lanes: two v_mfma_f32_16x16x16 (AMD CDNA2 and CDNA3 instruction set manuals, matrix layouts).
// Fragment layout, q = lane / 16, p = lane % 16:
//   A (row p, k 4 q + i)     B (k 4 q + i, col p)     C (row 4 q + i, col p)
// A lane takes 8 consecutive values of a row: step s multiplies its elements 4 s .. 4 s + 3.
#pragma once

#include "cuda/tile.cuh"

#if defined(TRIVIUM_GPU_EMU) || defined(__gfx90a__) || defined(__gfx942__) || !defined(__HIP_DEVICE_COMPILE__)
#define TRIVIUM_GPU_MMA 1
#endif

#if TRIVIUM_GPU_MMA
namespace trivium::TRIVIUM_GPU_NS {

// c[16, 16] += a[16, 16] b[16, 16]. Provided by the emulator in tests.
#if !defined(TRIVIUM_GPU_EMU)
GPU_DEVICE void mfma_16x16x16(float (&c)[4], const bf16 (&a)[4], const bf16 (&b)[4]) {
  using Bits = int16_t __attribute__((ext_vector_type(4)));
  using Sum = float __attribute__((ext_vector_type(4)));
  struct Four {
    bf16 x[4];
  };
  const Four fa{{a[0], a[1], a[2], a[3]}}, fb{{b[0], b[1], b[2], b[3]}};
  Sum sum{c[0], c[1], c[2], c[3]};
  sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Bits, fa), __builtin_bit_cast(Bits, fb),
                                                  sum, 0, 0, 0);
  for (int i = 0; i < 4; ++i) c[i] = sum[i];
}
GPU_DEVICE void mfma_16x16x16(float (&c)[4], const f16 (&a)[4], const f16 (&b)[4]) {
  using Half = _Float16 __attribute__((ext_vector_type(4)));
  using Sum = float __attribute__((ext_vector_type(4)));
  struct Four {
    f16 x[4];
  };
  const Four fa{{a[0], a[1], a[2], a[3]}}, fb{{b[0], b[1], b[2], b[3]}};
  Sum sum{c[0], c[1], c[2], c[3]};
  sum = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(Half, fa), __builtin_bit_cast(Half, fb), sum,
                                              0, 0, 0);
  for (int i = 0; i < 4; ++i) c[i] = sum[i];
}
#endif

template <class T>
struct MmaTile {
  static constexpr int kRows = 1, kAcc = 4, kAccRows = 4;
  struct Operand {
    T x[kRows][8];
  };
  struct Acc {
    float x[kAcc];
  };
  GPU_DEVICE static int row(int) { return lane_id() % 16; }
  GPU_DEVICE static int group() { return lane_id() / 16; }
  GPU_DEVICE static int acc_row(int i) { return i; }
  GPU_DEVICE static Coord coord(int i) { return {4 * (lane_id() / 16) + i, lane_id() % 16}; }
  GPU_DEVICE static void mma(Acc& acc, const Operand& a, const Operand& b) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const T fa[4] = {a.x[0][4 * s], a.x[0][4 * s + 1], a.x[0][4 * s + 2], a.x[0][4 * s + 3]};
      const T fb[4] = {b.x[0][4 * s], b.x[0][4 * s + 1], b.x[0][4 * s + 2], b.x[0][4 * s + 3]};
      mfma_16x16x16(acc.x, fa, fb);
    }
  }
  GPU_DEVICE static void row_sum(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<MmaTile, 16>::run(acc, out, 0.0f, [](float x, float y) { return x + y; });
  }
  GPU_DEVICE static void row_max(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<MmaTile, 16>::run(acc, out, -INFINITY, [](float x, float y) { return max(x, y); });
  }
};

}  // namespace trivium::TRIVIUM_GPU_NS
#endif
