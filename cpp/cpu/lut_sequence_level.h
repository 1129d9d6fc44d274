// The sequential LUT kernels of one CPU level: fully connected tables in float mode; see lut_level.h.
#pragma once

#include "cpu/lut_level.h"
#include "ops/lut_sequence_items.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

inline constexpr int64_t kLutAhead = 16;  // short rows fetched ahead

// y = (accumulate: y +) the sum over tables of the sum over pairs; cells [Nt][count].
TRIVIUM_INLINE void sum_pairs(const LutTable& w, const int32_t* cells, int64_t count, float* y,
                              bool accumulate, float* sum) {
  const int64_t outputs = w.outputs, total = w.num_tables * count;
  const bool split = is_split(w.weights);
  fill_zero(sum, outputs);
  for (int64_t t = 0; t < w.num_tables; ++t) {
    const float* table = w.weights + t * w.cells * outputs;
    const float* next_table = t + 1 < w.num_tables ? table + w.cells * outputs : table;
    for_columns(
        outputs, [&]<int kVectors>(int64_t k, int n) __attribute__((always_inline)) {
          F32 part[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) part[v] = zero();
          for (int64_t i = 0; i < count; ++i) {
            const int64_t at = t * count + i, ahead = smaller(at + kLutAhead, total - 1);
            const float* next = (i + kLutAhead < count ? table : next_table) + cells[ahead] * outputs + k;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; v += 16 / kLanes) __builtin_prefetch(next + v * kLanes);
            if (split) __builtin_prefetch(next + (kVectors - 1) * kLanes + n - 1);
            const float* row = table + cells[at] * outputs + k;
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) part[v] = add(part[v], load_n(row + v * kLanes, n));
          }
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            store_n(sum + k + v * kLanes, add(load_n(sum + k + v * kLanes, n), part[v]), n);
        });
  }
  for_vectors(
      outputs, [&](int64_t k, int n) __attribute__((always_inline)) {
        const F32 s = load_n(sum + k, n);
        store_n(y + k, accumulate ? add(load_n(y + k, n), s) : s, n);
      });
}

// Scratch of sum_pairs: `sum`, then the cells.
struct PairScratch {
  PairScratch(const LutTable& w, int64_t pairs) {
    const int64_t sums = (w.outputs + 15) / 16 * 16;
    sum = static_cast<float*>(thread_scratch((sums + w.num_tables * pairs) * 4));
    cells = reinterpret_cast<int32_t*>(sum + sums);
  }
  float* sum;
  int32_t* cells;
};

void lut_fill_outputs_for_sequence(const LutSequenceForwardArgs& a) {
  const LutTable& w = a.table;
  const LutSequence& s = a.sequence;
  parallel_for(s.batch * s.length, [&](int64_t task, int) {
    // The longest rows first: the tasks then end together.
    const int64_t b = task % s.batch, j = s.length - 1 - task / s.batch;
    const PairScratch scratch(w, s.length);
    for (int64_t t = 0; t < w.num_tables; ++t)
      for (int64_t i = 0; i < j; ++i) scratch.cells[t * j + i] = lut::cell_at(s, w.num_tables, b, i, j, t);
    sum_pairs(w, scratch.cells, j, a.y + (b * s.length + j) * w.outputs, false, scratch.sum);
  });
}

void lut_decode(const LutDecodeArgs& a) {
  const LutTable& w = a.table;
  for (int64_t item = 0; item < a.rows * w.num_tables; ++item) lut::remember_item(a, item);
  parallel_for(a.rows, [&](int64_t row, int) {
    const lut::DecodeRow seen = lut::decode_row(a, row);
    const int64_t j = seen.position, first = seen.first, count = j - first;
    const PairScratch scratch(w, count);
    for (int64_t t = 0; t < w.num_tables; ++t)
      for (int64_t i = first; i < j; ++i)
        scratch.cells[t * count + i - first] = lut::decode_cell(a, seen, i, t);
    sum_pairs(w, scratch.cells, count, a.y + row * w.outputs, a.accumulate != 0, scratch.sum);
  });
}

inline constexpr int64_t kPairBlock = 16;  // pairs planned, and fetched, at a time
inline constexpr int kBlocksAhead = 4;     // blocks planned ahead of their use

// One (b, t) of a backward pass: what the detectors of its positions and distances say, and its sums.
// Distances are stored from the longest to the shortest, so that for a given later position they run as
// positions do.
struct PairTask {
  struct Side {
    int32_t *index, *least;
    float *u, *sum;
  };
  Side x, pe;
  int64_t length;

  PairTask(const LutSequence& s, int64_t num_tables, int64_t b, int64_t t) : length(s.length) {
    const int64_t stride = s.length + 2 * kPairBlock;  // blocks read past the end
    auto* memory = static_cast<int32_t*>(thread_scratch(8 * stride * 4));
    const auto side = [&](int32_t* at) {
      return Side{at, at + stride, reinterpret_cast<float*>(at + 2 * stride),
                  reinterpret_cast<float*>(at + 3 * stride)};
    };
    x = side(memory);
    pe = side(memory + 4 * stride);
    fill_zero(memory, 8 * stride);
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t at = lut::detector_at(s, num_tables, b, i, t);
      x.index[i] = s.index[at], x.least[i] = s.min_index[at], x.u[i] = s.min_delta[at];
    }
    for (int64_t d = 1; d < s.length; ++d) {
      const int64_t to = s.length - 1 - d;
      pe.least[to] = -1;
      if (!s.num_pe) continue;
      const int64_t at = (d - 1) * num_tables + t;
      pe.index[to] = s.pe_index[at], pe.least[to] = s.pe_min_index[at], pe.u[to] = s.pe_min_delta[at];
    }
  }
  int64_t pe_at(int64_t i, int64_t j) const { return length - 1 - (j - i); }
};

// Pairs (i0 + k, j), k < count, and the rows of W they need: `count` addressed ones, as many with the flipped
// bit (the addressed one again where none flips), then those of the pairs whose embedding flips in addition.
struct alignas(64) PairBlock {
  int32_t cell[kPairBlock], bit[kPairBlock], q_side[kPairBlock], pe_bit[kPairBlock];
  float u[kPairBlock];
  int32_t rows[4 * kPairBlock];  // up to whole vectors the first again
  int count, num_rows;
};

// lut::pair_flip and the addresses, kLanes pairs at a time.
TRIVIUM_INLINE void plan_lanes(const LutSequence& s, const PairTask& task, int64_t i, int64_t j, int k,
                               PairBlock& p) {
  constexpr float kNever = __builtin_huge_valf();
  const auto magnitude = [](FloatLanes v) __attribute__((always_inline)) { return v < 0 ? -v : v; };
  const int64_t e = task.pe_at(i, j);
  const IntLanes32 rk = lanes_at<IntLanes32>(task.x.least + i), re = lanes_at<IntLanes32>(task.pe.least + e);
  const FloatLanes uk = lanes_at<FloatLanes>(task.x.u + i), ue = lanes_at<FloatLanes>(task.pe.u + e);
  const int32_t rq = task.x.least[j];
  const FloatLanes uq = FloatLanes{} + task.x.u[j], never = FloatLanes{} + kNever;
  const FloatLanes mq = rq < 0 ? never : magnitude(uq), mk = rk < 0 ? never : magnitude(uk),
                   me = magnitude(ue);
  const IntLanes32 usable_q = IntLanes32{} - (rq >= 0), usable_k = rk >= 0;
  const IntLanes32 q_side = usable_q & ((mq < mk) | ~usable_k), any = q_side | usable_k;
  const IntLanes32 pe = (re >= 0) & (~any | ((me < mq) & (me < mk)));
  const IntLanes32 one = IntLanes32{} + 1;
  const IntLanes32 shift = (q_side ? IntLanes32{} + (rq + s.num_anchors) : rk) + s.num_pe;
  put_lanes(p.cell + k, (lanes_at<IntLanes32>(task.x.index + i) << s.num_pe) |
                            (task.x.index[j] << (s.num_anchors + s.num_pe)) |
                            lanes_at<IntLanes32>(task.pe.index + e));
  put_lanes(p.bit + k, any & (one << (shift & any)));
  put_lanes(p.pe_bit + k, pe & (one << (re & pe)));
  put_lanes(p.q_side + k, q_side);
  put_lanes(p.u + k, q_side ? uq : uk);
}

template <class Outputs>
TRIVIUM_INLINE void plan_pairs(const LutSequence& s, const PairTask& task, const float* table,
                               Outputs outputs, int64_t i0, int64_t j, PairBlock& p) {
  p.count = static_cast<int>(larger(0, smaller(kPairBlock, j - i0)));
  for (int k = 0; k < kPairBlock; k += kLanes) plan_lanes(s, task, i0 + k, j, k, p);
  for (int k = 0; k < kPairBlock; ++k) p.bit[k] = k < p.count ? p.bit[k] : 0;
  for (int k = 0; k < kPairBlock; ++k) p.pe_bit[k] = k < p.count ? p.pe_bit[k] : 0;
  // What a run has too much the next one overwrites.
  for (int k = 0; k < kPairBlock; ++k) p.rows[k] = p.cell[k];
  for (int k = 0; k < kPairBlock; ++k) p.rows[p.count + k] = p.cell[k] ^ p.bit[k];
  p.num_rows = 2 * p.count;
  for (int k = 0; s.num_pe && k < p.count; ++k) {
    p.rows[p.num_rows] = p.cell[k] ^ p.pe_bit[k];
    p.num_rows += p.pe_bit[k] != 0;
  }
  for (int k = 0; k < kPairBlock; ++k) p.rows[p.num_rows + k] = p.cell[0];
  for (int n = 0; n < p.num_rows; ++n) prefetch_row(table + p.rows[n] * outputs, outputs);
}

// Dot products of gy with the block's rows, up to whole vectors. `outputs` is a number, or a constant for
// rows of one length.
template <class Outputs>
TRIVIUM_INLINE void block_dots(const PairBlock& p, const float* table, const float* gy, Outputs outputs,
                               float* dots) {
  for (int n = 0; n < p.num_rows; n += kLanes) {
    FloatLanes parts[kLanes];
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; ++k)
      store(reinterpret_cast<float*>(&parts[k]), row_products(table + p.rows[n + k] * outputs, gy, outputs));
    reduce_lanes(parts);
    put_lanes(dots + n, parts[0]);
  }
}

// lut::delta_of for kLanes pairs; bits are flipped ones of the cells, 0: none flips.
TRIVIUM_INLINE FloatLanes delta_lanes(const float* difference, const int32_t* cell, const int32_t* bits,
                                      const float* main, const float* other) {
  const FloatLanes u = lanes_at<FloatLanes>(difference), size = 1 + (u < 0 ? -u : u);
  const IntLanes32 bit = lanes_at<IntLanes32>(bits), set = (lanes_at<IntLanes32>(cell) & bit) != 0;
  const FloatLanes half = set ? FloatLanes{} + 0.5f : FloatLanes{} - 0.5f;
  const FloatLanes v = half / (size * size) * (lanes_at<FloatLanes>(main) - lanes_at<FloatLanes>(other));
  const IntLanes32 dropped = (bit == 0) | ((v < 0 ? -v : v) <= lut::kGradientEps);
  return dropped ? FloatLanes{} : v;
}

// lut::PairSums::add for a block, in the same order; returns the flips of position j. Past `count` no bit
// flips, and zeros are added.
template <class Outputs>
TRIVIUM_INLINE float add_pairs(const PairTask& task, const float* table, const float* gy, Outputs outputs,
                               int64_t i0, int64_t j, float later, const PairBlock& p) {
  alignas(64) float dots[4 * kPairBlock] = {}, flips[kPairBlock], pe_other[kPairBlock];
  block_dots(p, table, gy, outputs, dots);
  const float *main = dots, *other = main + p.count;
  for (int k = 0, n = 2 * p.count; k < kPairBlock; ++k) {  // another one's where no embedding flips
    pe_other[k] = dots[n];
    n += p.pe_bit[k] != 0;
  }
  float *sum = task.x.sum + i0, *pe_sum = task.pe.sum + task.pe_at(i0, j);
  const float* pe_u = task.pe.u + task.pe_at(i0, j);
  for (int k = 0; k < kPairBlock; k += kLanes) {
    const FloatLanes delta = delta_lanes(p.u + k, p.cell + k, p.bit + k, main + k, other + k);
    const IntLanes32 q_side = lanes_at<IntLanes32>(p.q_side + k);
    put_lanes(flips + k, q_side ? delta : FloatLanes{});
    put_lanes(sum + k, lanes_at<FloatLanes>(sum + k) + (q_side ? FloatLanes{} : delta));
    const FloatLanes pe = delta_lanes(pe_u + k, p.cell + k, p.pe_bit + k, main + k, pe_other + k);
    put_lanes(pe_sum + k, lanes_at<FloatLanes>(pe_sum + k) + pe);
  }
#pragma GCC unroll 16
  for (int k = 0; k < kPairBlock; ++k) later += flips[k];
  return later;
}

// Walks the blocks of pairs of one (b, t): j ascending, and i within it.
struct BlockCursor {
  int64_t i0 = 0, j = 1;
  void next() {
    i0 += kPairBlock;
    if (i0 >= j) i0 = 0, ++j;
  }
};

// Sums of one (b, t) into its task.
template <class Outputs>
TRIVIUM_INLINE void sum_flips(const LutSequence& s, const PairTask& task, const float* table, const float* gy,
                              Outputs outputs) {
  PairBlock blocks[kBlocksAhead + 1];
  BlockCursor planned, at;
  const auto plan = [&](PairBlock & block) __attribute__((always_inline)) {
    if (planned.j < s.length) plan_pairs(s, task, table, outputs, planned.i0, planned.j, block);
    planned.next();
  };
  for (int n = 0; n < kBlocksAhead; ++n) plan(blocks[n]);
  float later = 0;
  for (int n = 0; at.j < s.length; at.next(), n = n < kBlocksAhead ? n + 1 : 0) {
    plan(blocks[n ? n - 1 : kBlocksAhead]);
    later = add_pairs(task, table, gy + at.j * outputs, outputs, at.i0, at.j, later, blocks[n]);
    if (at.i0 + kPairBlock >= at.j) task.x.sum[at.j] = later, later = 0;
  }
}

// Tasks of one table follow each other, whose rows then are in a cache.
void lut_gather_x_gradients_for_sequence(const LutSequenceXGradientArgs& a) {
  constexpr std::integral_constant<int64_t, lut::kPartials> kShort;  // a row that needs no loop
  const LutTable& w = a.table;
  const LutSequence& s = a.sequence;
  parallel_for(s.batch * w.num_tables, [&](int64_t number, int) {
    const int64_t t = number / s.batch, b = number % s.batch;
    const float* table = w.weights + t * w.cells * w.outputs;
    const float* gy = a.gy + b * s.length * w.outputs;
    const PairTask task(s, w.num_tables, b, t);
    if (w.outputs == kShort)
      sum_flips(s, task, table, gy, kShort);
    else
      sum_flips(s, task, table, gy, w.outputs);
    for (int64_t i = 0; i < s.length; ++i)
      static_cast<float*>(a.delta)[lut::detector_at(s, w.num_tables, b, i, t)] = task.x.sum[i];
    for (int64_t d = 1; s.num_pe && d < s.length; ++d)
      static_cast<float*>(a.pe_delta)[(b * (s.length - 1) + d - 1) * w.num_tables + t] =
          task.pe.sum[s.length - 1 - d];
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
