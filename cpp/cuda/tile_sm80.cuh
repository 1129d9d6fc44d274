// MmaTile on 32 lanes: two steps of mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16") for each
// half of the columns. Fragment layout, g = lane / 4, t = lane % 4:
//   A a[0..1] (row g, k 2t + i), a[2..3] (row g + 8), a[4..5] (row g, k 2t + 8 + i), a[6..7] (row g + 8)
//   B b[0..1] (k 2t + i, col g), b[2..3] (k 2t + 8 + i)     C c[0..1] (row g, col 2t + i),
//   c[2..3] (row g + 8)
// The k index of an instruction only pairs A with B, so a lane takes 8 consecutive values of a row: step s
// multiplies its elements 4 s .. 4 s + 3.
#pragma once

#include "cuda/tile.cuh"

#define TRIVIUM_GPU_MMA 1

namespace trivium::TRIVIUM_GPU_NS {

// c[16, 8] += a[16, 16] b[16, 8]. Provided by the emulator in tests.
#if !defined(TRIVIUM_GPU_EMU)
GPU_DEVICE uint32_t pack2(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

GPU_DEVICE void mma_m16n8k16(float (&c)[4], const bf16 (&a)[8], const bf16 (&b)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(pack2(a[0].bits, a[1].bits)), "r"(pack2(a[2].bits, a[3].bits)), "r"(pack2(a[4].bits, a[5].bits)),
        "r"(pack2(a[6].bits, a[7].bits)), "r"(pack2(b[0].bits, b[1].bits)), "r"(pack2(b[2].bits, b[3].bits)));
}
GPU_DEVICE void mma_m16n8k16(float (&c)[4], const f16 (&a)[8], const f16 (&b)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(pack2(a[0].bits, a[1].bits)), "r"(pack2(a[2].bits, a[3].bits)), "r"(pack2(a[4].bits, a[5].bits)),
        "r"(pack2(a[6].bits, a[7].bits)), "r"(pack2(b[0].bits, b[1].bits)), "r"(pack2(b[2].bits, b[3].bits)));
}
#endif

template <class T>
struct MmaTile {
  static constexpr int kRows = 2, kAcc = 8, kAccRows = 2;
  struct Operand {
    T x[kRows][8];
  };
  struct Acc {
    float x[kAcc];
  };
  GPU_DEVICE static int row(int r) { return lane_id() / 4 + 8 * r; }
  GPU_DEVICE static int group() { return lane_id() % 4; }
  GPU_DEVICE static int acc_row(int i) { return i / 2 % 2; }
  GPU_DEVICE static Coord coord(int i) {
    return {lane_id() / 4 + 8 * (i / 2 % 2), 2 * (lane_id() % 4) + i % 2 + 8 * (i / 4)};
  }
  GPU_DEVICE static void mma(Acc& acc, const Operand& a, const Operand& b) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const T fa[8] = {a.x[0][4 * s],     a.x[0][4 * s + 1], a.x[1][4 * s],     a.x[1][4 * s + 1],
                       a.x[0][4 * s + 2], a.x[0][4 * s + 3], a.x[1][4 * s + 2], a.x[1][4 * s + 3]};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const T fb[4] = {b.x[h][4 * s], b.x[h][4 * s + 1], b.x[h][4 * s + 2], b.x[h][4 * s + 3]};
        float c[4] = {acc.x[4 * h], acc.x[4 * h + 1], acc.x[4 * h + 2], acc.x[4 * h + 3]};
        mma_m16n8k16(c, fa, fb);
#pragma unroll
        for (int i = 0; i < 4; ++i) acc.x[4 * h + i] = c[i];
      }
    }
  }
  GPU_DEVICE static void row_sum(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<MmaTile, 4>::run(acc, out, 0.0f, [](float x, float y) { return x + y; });
  }
  GPU_DEVICE static void row_max(const Acc& acc, float (&out)[kAccRows]) {
    RowReduction<MmaTile, 4>::run(acc, out, -INFINITY, [](float x, float y) { return max(x, y); });
  }
};

}  // namespace trivium::TRIVIUM_GPU_NS
