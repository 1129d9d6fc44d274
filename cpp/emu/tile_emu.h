// The emulated matrix instructions. Each lane deposits its fragments; the last one forms the dense product in
// float32, k ascending, and hands every lane its part. The layouts here are typed from the vendors' manuals
// and share nothing with the coord() functions of the tiles, so that a fault in those shows.
#pragma once

#include <cstring>

#include "cuda/tile.cuh"

namespace trivium::TRIVIUM_GPU_NS {

template <class T, int A, int B>
struct FragmentPayload {
  float (&c)[4];
  const T (&a)[A];
  const T (&b)[B];
};

// c[16, N] += a[16, 16] b[16, N]; every product of two bf16 or f16 values is exact in float32.
template <int N>
inline void dense_product(float (&c)[16][N], const float (&a)[16][16], const float (&b)[16][N]) {
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int col = 0; col < N; ++col) c[row][col] += a[row][k] * b[k][col];
}

#if TRIVIUM_EMU_WARP == 32
// PTX ISA 8, 9.7.14.5.8 "Matrix Fragments for mma.m16n8k16 with floating point type":
//   groupID = lane >> 2, threadID_in_group = lane % 4
//   A: row = groupID for i = 0, 1, 4, 5, else groupID + 8; col = threadID_in_group * 2 + (i & 1), + 8 for i
//   >= 4 B: row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2; col = groupID C: row = groupID for i < 2,
//   else groupID + 8; col = threadID_in_group * 2 + (i & 1)
template <class T>
inline void mma_m16n8k16_of(float (&c)[4], const T (&a)[8], const T (&b)[4], const Place& place) {
  using Payload = FragmentPayload<T, 8, 4>;
  Payload payload{c, a, b};
  const auto complete = [](void* const* payloads, uint64_t) {
    float fa[16][16], fb[16][8], fc[16][8];
    const auto c_row = [](int lane, int i) { return (lane >> 2) + (i < 2 ? 0 : 8); };
    const auto c_col = [](int lane, int i) { return (lane % 4) * 2 + (i & 1); };
    for (int lane = 0; lane < 32; ++lane) {
      const auto& p = *static_cast<const Payload*>(payloads[lane]);
      const int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const bool upper = i == 0 || i == 1 || i == 4 || i == 5;
        fa[upper ? group : group + 8][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)] = to_float(p.a[i]);
      }
      for (int i = 0; i < 4; ++i) fb[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = to_float(p.b[i]);
      for (int i = 0; i < 4; ++i) fc[c_row(lane, i)][c_col(lane, i)] = p.c[i];
    }
    dense_product(fc, fa, fb);
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        static_cast<const Payload*>(payloads[lane])->c[i] = fc[c_row(lane, i)][c_col(lane, i)];
  };
  emu::warp_rendezvous(full_mask(), "mma_m16n8k16", &payload, complete, place);
}
GPU_DEVICE void mma_m16n8k16(float (&c)[4], const bf16 (&a)[8], const bf16 (&b)[4],
                             Place place = Place::current()) {
  mma_m16n8k16_of(c, a, b, place);
}
GPU_DEVICE void mma_m16n8k16(float (&c)[4], const f16 (&a)[8], const f16 (&b)[4],
                             Place place = Place::current()) {
  mma_m16n8k16_of(c, a, b, place);
}
#else
// AMD Instinct MI200 and MI300 instruction set architecture, V_MFMA_F32_16X16X16_F16 / _BF16(_1K), one block:
//   A[i][k]: i = lane % 16, k = 4 * (lane / 16) + element     B[k][j]: j = lane % 16, k = 4 * (lane / 16) +
//   element D[i][j]: j = lane % 16, i = 4 * (lane / 16) + element
template <class T>
inline void mfma_16x16x16_of(float (&c)[4], const T (&a)[4], const T (&b)[4], const Place& place) {
  using Payload = FragmentPayload<T, 4, 4>;
  Payload payload{c, a, b};
  const auto complete = [](void* const* payloads, uint64_t) {
    float fa[16][16], fb[16][16], fc[16][16];
    for (int lane = 0; lane < 64; ++lane) {
      const auto& p = *static_cast<const Payload*>(payloads[lane]);
      const int outer = lane % 16, inner = 4 * (lane / 16);
      for (int i = 0; i < 4; ++i) {
        fa[outer][inner + i] = to_float(p.a[i]);
        fb[inner + i][outer] = to_float(p.b[i]);
        fc[inner + i][outer] = p.c[i];
      }
    }
    dense_product(fc, fa, fb);
    for (int lane = 0; lane < 64; ++lane)
      for (int i = 0; i < 4; ++i)
        static_cast<const Payload*>(payloads[lane])->c[i] = fc[4 * (lane / 16) + i][lane % 16];
  };
  emu::warp_rendezvous(full_mask(), "mfma_16x16x16", &payload, complete, place);
}
GPU_DEVICE void mfma_16x16x16(float (&c)[4], const bf16 (&a)[4], const bf16 (&b)[4],
                              Place place = Place::current()) {
  mfma_16x16x16_of(c, a, b, place);
}
GPU_DEVICE void mfma_16x16x16(float (&c)[4], const f16 (&a)[4], const f16 (&b)[4],
                              Place place = Place::current()) {
  mfma_16x16x16_of(c, a, b, place);
}
#endif

}  // namespace trivium::TRIVIUM_GPU_NS

#if TRIVIUM_EMU_WARP == 32
#include "cuda/tile_sm80.cuh"
#else
#include "hip/tile_cdna.h"
#endif
