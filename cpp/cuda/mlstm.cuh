// What the mLSTM kernels share: 64 x 64 products through shared memory on the warp tile, and the gates of a
// chunk.
//
// Notation as in ops/mlstm_args.h. Products take their operands as functions of (row, k), so that every gate,
// scale and transposition is applied on the way into shared memory. bf16 inputs are multiplied as bf16,
// float32 and f16 as float32 (f16 holds too little for the states and gate factors).
#pragma once

#include "cuda/block.cuh"
#include "cuda/kernels.h"
#include "cuda/tile.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kEdge = 64;   // rows and columns of a block's product
inline constexpr int kStepK = 32;  // of a warp tile
inline constexpr int kMlstmThreads = 128;
inline constexpr int kPairPitch = kEdge + 1, kPairs = kEdge * kPairPitch;  // float32 values of 64 x 64 pairs
inline constexpr int kMaxChunk = 1024;                                     // tokens

template <class T>
using ProductType = std::conditional_t<std::is_same_v<T, bf16>, bf16, float>;

// The block's 64 x 64 accumulator: of 4 x 4 sub-tiles in row-major order warp w owns w, w + kWarps, ...
template <class P>
struct BlockAcc {
  static constexpr int kWarps = kMlstmThreads / kWarpSize, kTiles = 16 / kWarps;
  static_assert(4 % kWarps == 0);  // so the row of a sub-tile is known at compile time
  typename Tile<P>::Acc x[kTiles];

  GPU_DEVICE static int tile_row(int t) { return 16 * (t * kWarps / 4); }
  GPU_DEVICE static int tile_col(int t) { return 16 * (t * kWarps % 4 + warp_id()); }
  GPU_DEVICE void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < Tile<P>::kAcc; ++i) x[t].x[i] = 0;
  }
  // acc += a b^T of one step in shared memory: [kEdge][kStepK] each.
  GPU_DEVICE void add_step(const P* a, const P* b, int pitch) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const auto oa = load_operand<Tile<P>>(a + tile_row(t) * pitch, pitch);
      const auto ob = load_operand<Tile<P>>(b + tile_col(t) * pitch, pitch);
      Tile<P>::mma(x[t], oa, ob);
    }
  }
  // fn(row, col, value&) for every element of the lane.
  template <class Fn>
  GPU_DEVICE void for_each(Fn fn) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < Tile<P>::kAcc; ++i) {
        const Coord at = Tile<P>::coord(i);
        fn(tile_row(t) + at.row, tile_col(t) + at.col, x[t].x[i]);
      }
  }
};

// float32 has no matrix units: a thread owns 8 rows and 4 columns and multiplies from shared memory.
template <>
struct BlockAcc<float> {
  static constexpr int kRows = 8, kCols = 4;
  static_assert(kRows * kCols * kMlstmThreads == kEdge * kEdge);
  float x[kRows][kCols];

  GPU_DEVICE static int row0() { return kRows * (static_cast<int>(threadIdx.x) / (kEdge / kCols)); }
  GPU_DEVICE static int col0() { return kCols * (static_cast<int>(threadIdx.x) % (kEdge / kCols)); }
  GPU_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kCols; ++c) x[r][c] = 0;
  }
  template <class Fn>
  GPU_DEVICE void for_each(Fn fn) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kCols; ++c) fn(row0() + r, col0() + c, x[r][c]);
  }
  GPU_DEVICE void add_step(const float* a, const float* b, int pitch) {
#pragma unroll 4
    for (int k = 0; k < kStepK; ++k) {
      float vb[kCols];
#pragma unroll
      for (int c = 0; c < kCols; ++c) vb[c] = b[(col0() + c) * pitch + k];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float va = a[(row0() + r) * pitch + k];
#pragma unroll
        for (int c = 0; c < kCols; ++c) x[r][c] = fma(va, vb[c], x[r][c]);
      }
    }
  }
};

// Operands of one step: [64][kStepK] with padded rows that stay 16-byte aligned.
template <class P>
struct Operands {
  static constexpr int kPitch = kStepK + 16 / sizeof(P);
  static constexpr int kCount = 2 * kEdge * kPitch;
};

// The order in which threads read an operand: along k, or along its rows.
enum class Along { k, rows };

template <class P, class Fn>
GPU_DEVICE void fill_operand(P* to, int depth, Along along, Fn fn) {
  for (int i = static_cast<int>(threadIdx.x); i < kEdge * kStepK; i += kMlstmThreads) {
    const int row = along == Along::k ? i / kStepK : i % kEdge,
              k = along == Along::k ? i % kStepK : i / kEdge;
    to[row * Operands<P>::kPitch + k] = from_float<P>(k < depth ? fn(row, k) : 0.0f);
  }
}

// acc[r][c] += sum_{k < depth} a(r, k) b(c, k). a and b must give 0 for rows that do not exist. All threads
// of the block; `shared` holds Operands<P>::kCount elements.
template <class P, class A, class B>
GPU_DEVICE void add_product(BlockAcc<P>& acc, int64_t depth, P* shared, Along along_a, A a, Along along_b,
                            B b) {
  constexpr int kPitch = Operands<P>::kPitch;
  P *sa = shared, *sb = shared + kEdge * kPitch;
  for (int64_t k0 = 0; k0 < depth; k0 += kStepK) {
    const int left = static_cast<int>(depth - k0 < kStepK ? depth - k0 : kStepK);
    sync_block();  // the step before has been read
    fill_operand(sa, left, along_a, [&](int row, int k) { return a(row, k0 + k); });
    fill_operand(sb, left, along_b, [&](int row, int k) { return b(row, k0 + k); });
    sync_block();
    acc.add_step(sa, sb, kPitch);
  }
}

// A chunk of one head.
struct ChunkPlace {
  int64_t head, chunk, first;  // first token
  int count;                   // tokens
  int64_t b, h;
  GPU_DEVICE ChunkPlace(const MlstmSizes& s, int64_t index) {
    const int64_t chunks = s.num_chunks();
    head = index / chunks, chunk = index % chunks, first = chunk * s.chunk;
    count = static_cast<int>(s.tokens - first < s.chunk ? s.tokens - first : s.chunk);
    b = head / s.heads, h = head % s.heads;
  }
  GPU_DEVICE int64_t at(const MlstmStrides& s) const { return b * s.batch + h * s.head + first * s.token; }
};

GPU_DEVICE float finite_m(float m) { return m == -INFINITY ? 0.0f : m; }
// e^x for x <= 0; 0 for -infinity.
GPU_DEVICE float decay(float x) { return x < -88.0f ? 0.0f : exp(x); }

// sum + before - after with what sum + before loses to rounding (Knuth's TwoSum). m takes that rounded sum
// over and over, and a state scaled without the rest would drift against m by as much in every chunk. Exact
// only without reassociation: no fast math.
GPU_DEVICE float exponent_of(float sum, float before, float after) {
  const float rounded = sum + before, part = rounded - sum;
  const float lost = (sum - (rounded - part)) + (before - part);
  return abs(rounded) < INFINITY ? rounded - after + lost : rounded - after;
}

// min(x, 0) - log1p(e^-|x|); log1p by Kahan's correction, since a plain log loses small arguments.
GPU_DEVICE float log_sigmoid(float x) {
  if (isnan(x)) return x;
  const float e = exp(-abs(x)), u = 1.0f + e;
  const float log1p = u == 1.0f ? e : log(u) * (e / (u - 1.0f));
  return min(x, 0.0f) - log1p;
}

// Work arrays of the gates, B NH S or B NH NC floats each.
struct GateSums {
  float *b, *a;      // of tokens: sums from the chunk's start, input weights at its end
  float *pre, *suf;  // sums from the start of the 64 tokens around, and from the next token to their end
  float *g, *top;    // of chunks: whole sum, largest a
  static GateSums at(float* memory, const MlstmSizes& s) {
    const int64_t tokens = s.batch * s.heads * s.tokens, chunks = s.batch * s.heads * s.num_chunks();
    return {memory,
            memory + tokens,
            memory + 2 * tokens,
            memory + 3 * tokens,
            memory + 4 * tokens,
            memory + 4 * tokens + chunks};
  }
};

// to[r * (kEdge + 1) + c] = d_lj of tokens l = r0 + r and j = j0 + c of the chunk at `tokens`, without a
// difference of sums: from the start of l's 64 tokens, over whole 64s between, from j to the end of its 64.
// Entries with j > l are not meaningful. All threads of the block.
GPU_DEVICE void mlstm_decays(const GateSums& sums, const float* lf, const float* li, int64_t tokens, int r0,
                             int j0, int count, float* to) {
  if (r0 == j0) {
    for (int c = static_cast<int>(threadIdx.x); c < kEdge; c += kMlstmThreads) {
      float sum = 0;
      for (int r = 0; r < kEdge; ++r) {
        const bool pair = r >= c && r0 + r < count;
        if (pair && r > c) sum += lf[tokens + r0 + r];
        to[r * (kEdge + 1) + c] = pair ? sum + li[tokens + j0 + c] : 0.0f;
      }
    }
    return;
  }
  float between = 0;
  for (int t = j0 + kEdge; t < r0; t += kEdge) between += sums.pre[tokens + t + kEdge - 1];
  for (int i = static_cast<int>(threadIdx.x); i < kEdge * kEdge; i += kMlstmThreads) {
    const int r = i / kEdge, c = i % kEdge;
    to[r * (kEdge + 1) + c] =
        r0 + r < count ? sums.pre[tokens + r0 + r] + between + sums.suf[tokens + j0 + c] + li[tokens + j0 + c]
                       : 0.0f;
  }
}

// mlstm_gates.cu. gate_sums fills `sums` and, unless null, intra = max_j d_lj of every token; scan_m the
// m_states from m0 (null: zeros); finish_m turns intra into m.
void mlstm_gate_sums(Stream stream, const MlstmSizes& size, const float* li, const float* lf,
                     const GateSums& sums, float* intra);
void mlstm_scan_m(Stream stream, const MlstmSizes& size, const MlstmOptions& options, const GateSums& sums,
                  const float* m0, float* m_states);
void mlstm_finish_m(Stream stream, const MlstmSizes& size, const MlstmOptions& options, const GateSums& sums,
                    const float* m_states, float* m);

}  // namespace trivium::TRIVIUM_GPU_NS
