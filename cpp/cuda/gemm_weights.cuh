// Rows of a weight matrix as operands of Tile<T>, in every storage format and in the checkpoint's layout.
//
// k is walked in steps of kStep columns. Of a step a lane holds the 32 columns from 32 group() on, which is
// one MXFP4 block (16 bytes and a scale), and product s of the step takes 8 of them from each lane: operand
// element j is column 32 group() + 8 s + j. The other operand is read at the same places (gemm.cuh), and all
// formats are summed in the same order. Float32 and float16 weights are rounded to bfloat16 when T is bf16;
// MXFP4 is exact in both.
#pragma once

#include "cuda/tile.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kStep = 128;     // columns of k
inline constexpr int kProducts = 4;   // tile products of a step
inline constexpr int kLaneStep = 32;  // columns of a step that one lane holds

using Bits = Vec<uint32_t, 4>;  // 16 bytes of any type, moved as words

struct Mxfp4 {};      // blocks and scales, WeightFormat::mxfp4
struct AnyFormat {};  // dispatched for every element: rows that 16-byte loads cannot take

// Weights are found by index from the matrix's start, counted in units: an MXFP4 block, else an element.
template <class W>
inline constexpr int kUnit = std::is_same_v<W, Mxfp4> ? kMxBlock : 1;

// What a lane holds of a row for kCount consecutive products. load(w, first, at, left) takes the columns from
// `at` on after unit `first`, of which the first `left` exist; the others are zeros and not read.
// decode(s, out) gives those of product s.
template <class T, class W, int kCount>
struct WeightPart {
  static constexpr int kVec = 16 / sizeof(W), kVecs = 8 * kCount / kVec;
  Bits v[kVecs];

  // The two halves of a 32-byte sector are loads of their own, so they must meet in the first-level cache.
  GPU_DEVICE void load(const WeightView& w, int64_t first, int at, int left) {
    const W* const from = as<const W>(w.data) + first + at;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      v[i] = {};
      if (i * kVec < left) v[i] = load_vec<4>(reinterpret_cast<const uint32_t*>(from + i * kVec));
    }
  }
  GPU_DEVICE void decode(int s, T (&out)[8]) const {
#pragma unroll
    for (int i = 0; i < 8 / kVec; ++i) {
      const auto values = __builtin_bit_cast(Vec<W, kVec>, v[s * (8 / kVec) + i]);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if constexpr (std::is_same_v<T, W>)
          out[i * kVec + j] = values.x[j];
        else
          out[i * kVec + j] = from_float<T>(to_float(values.x[j]));
      }
    }
  }
};

// Pairs of bfloat16 (element 2 i low, 2 i + 1 high) whose values are those of the 8 E2M1 codes of `word`
// times 2^-126: sign at bit 15, the two exponent bits and the mantissa bit at 8..6, subnormals included.
GPU_DEVICE void expand_fp4(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t even = word & 0x0f0f0f0fu, odd = word >> 4 & 0x0f0f0f0fu;
  pairs[0] = zip_bytes<0>(even, odd);
  pairs[1] = zip_bytes<1>(even, odd);
  pairs[2] = zip_bytes<2>(even, odd);
  pairs[3] = zip_bytes<3>(even, odd);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pairs[i] = pairs[i] * 0x1040u & 0x81c081c0u;  // the code at bits 12 and 6 of a half
}

template <class T, int kCount>
struct WeightPart<T, Mxfp4, kCount> {
  static_assert(kCount == kProducts);
  static constexpr uint32_t kLargest = 128;  // scale whose 2^(scale - 1) is bfloat16's largest power of two
  Bits codes;
  uint32_t scale;

  GPU_DEVICE void load(const WeightView& w, int64_t block, int, int left) {
    codes = {};
    scale = 0;
    if (left > 0) {
      codes = load_stream<4>(as<const uint32_t>(w.data) + 4 * block);
      scale = w.scales[block];
    }
  }
  // bf16: as if no scale exceeded kLargest; rescale() multiplies by what is missing.
  GPU_DEVICE void decode(int s, T (&out)[8]) const {
    uint32_t pairs[4];
    expand_fp4(codes.x[s], pairs);
    if constexpr (std::is_same_v<T, bf16>) {
      const uint32_t factor =
          ((scale < kLargest ? scale : kLargest) + 126) * 0x800080u;  // 2^(scale - 1), twice
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = mul_bf16x2(pairs[i], factor);
      set(pairs, out);
    } else {
      const float factor = mx_scale(static_cast<uint8_t>(scale));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t bits = pairs[j / 2] >> 16 * (j % 2) << 16;
        out[j] = __builtin_bit_cast(float, bits) * 0x1p126f * factor;
      }
    }
  }
  GPU_DEVICE void rescale(T (&out)[8]) const {
    const uint32_t rest = scale <= kLargest ? 0x3f80u : scale == 255 ? 0x7fc0u : (scale - 1) << 7;
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = mul_bf16x2(out[2 * i].bits | uint32_t{out[2 * i + 1].bits} << 16, rest | rest << 16);
    set(pairs, out);
  }

 private:
  GPU_DEVICE static void set(const uint32_t (&pairs)[4], T (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = {static_cast<uint16_t>(pairs[i])};
      out[2 * i + 1] = {static_cast<uint16_t>(pairs[i] >> 16)};
    }
  }
};

template <class T, int kCount>
struct WeightPart<T, AnyFormat, kCount> {
  T x[kCount][8];

  GPU_DEVICE static float fp4_element(const WeightView& w, int64_t i) {
    uint32_t pairs[4];
    expand_fp4(as<const uint8_t>(w.data)[i / 2], pairs);
    const uint32_t bits = pairs[0] >> 16 * (i % 2) << 16;
    return __builtin_bit_cast(float, bits) * 0x1p126f * mx_scale(w.scales[i / kMxBlock]);
  }
  GPU_DEVICE void load(const WeightView& w, int64_t first, int at, int left) {
    const auto fill = [&](const auto& element) {
#pragma unroll
      for (int s = 0; s < kCount; ++s)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          x[s][j] = 8 * s + j < left ? from_float<T>(element(first + at + 8 * s + j)) : from_float<T>(0.0f);
    };
    if (w.format == WeightFormat::f32)
      fill([&](int64_t i) { return as<const float>(w.data)[i]; });
    else if (w.format == WeightFormat::bf16)
      fill([&](int64_t i) { return to_float(as<const bf16>(w.data)[i]); });
    else if (w.format == WeightFormat::f16)
      fill([&](int64_t i) { return to_float(as<const f16>(w.data)[i]); });
    else
      fill([&](int64_t i) { return fp4_element(w, i); });
  }
  GPU_DEVICE void decode(int s, T (&out)[8]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) out[j] = x[s][j];
  }
};

// The weights of 16 kColTiles columns for kCount products of one warp.
template <class T, class W, int kColTiles, int kCount>
struct WeightTiles {
  static constexpr int kRows = Tile<T>::kRows;
  // One index for all rows of a lane, which lie whole rows of the matrix apart: addresses are made where they
  // are needed, because registers are what these kernels lack.
  struct Place {
    int64_t first;  // unit of this lane's first row and first column of the step
    int left;       // columns from there on
    bool there[kColTiles][kRows];
  };
  WeightPart<T, W, kCount> part[kColTiles][kRows];

  // Output columns [n0, n0 + 16 kColTiles) of one expert's matrix [n, k], k columns from k0 to k1. Rows past
  // the end are zeros and not read.
  GPU_DEVICE static void set(Place& place, int64_t expert, int64_t n, int64_t k, int64_t n0, int k0, int k1) {
    const int column = k0 + kLaneStep * Tile<T>::group();
    const int64_t row = n0 + Tile<T>::row(0);
    place.first = ((expert * n + row) * k + column) / kUnit<W>;
    place.left = k1 - column;
#pragma unroll
    for (int c = 0; c < kColTiles; ++c)
#pragma unroll
      for (int r = 0; r < kRows; ++r) place.there[c][r] = n0 + 16 * c + Tile<T>::row(r) < n;
  }
  // Part number s / kCount of the step, or with s = kProducts the first part of the next one.
  GPU_DEVICE void load(Place& place, const WeightView& w, int64_t k, int s) {
    if (s == kProducts) {
      s = 0;
      place.left -= kStep;
      place.first += kStep / kUnit<W>;
    }
#pragma unroll
    for (int c = 0; c < kColTiles; ++c)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int rows = 16 * c + Tile<T>::row(r) - Tile<T>::row(0);  // from this lane's first
        part[c][r].load(w, place.first + rows * (k / kUnit<W>), 8 * s,
                        place.there[c][r] ? place.left - 8 * s : 0);
      }
  }
  GPU_DEVICE void decode(int s, typename Tile<T>::Operand (&b)[kColTiles]) const {
#pragma unroll
    for (int c = 0; c < kColTiles; ++c)
#pragma unroll
      for (int r = 0; r < kRows; ++r) part[c][r].decode(s, b[c].x[r]);
    if constexpr (std::is_same_v<W, Mxfp4> && std::is_same_v<T, bf16>) {
      uint32_t largest = 0;
#pragma unroll
      for (int c = 0; c < kColTiles; ++c)
#pragma unroll
        for (int r = 0; r < kRows; ++r) largest = part[c][r].scale > largest ? part[c][r].scale : largest;
      if (largest <= part[0][0].kLargest) return;  // weights of 12 and more are rare
#pragma unroll
      for (int c = 0; c < kColTiles; ++c)
#pragma unroll
        for (int r = 0; r < kRows; ++r) part[c][r].rescale(b[c].x[r]);
    }
  }
};

}  // namespace trivium::TRIVIUM_GPU_NS
