// The LUT kernels of one CPU level: fully connected tables in float mode, where the time goes. Everything
// else runs item by item (cpu/lut.cpp). Sums have the order of ops/lut_items.h, so all levels and the GPUs
// give the same bits. Included by level_kernels.h.
#pragma once

#include <utility>

#include "core/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "ops/lut_items.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// No std:: algorithm here: a template they share with other files could be built for the wrong level.
TRIVIUM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TRIVIUM_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
template <class T>
TRIVIUM_INLINE void fill_zero(T* to, int64_t count) {
  __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(T));
}

// Not at the start of a line: a row then ends in a line more.
TRIVIUM_INLINE bool is_split(const float* row) { return reinterpret_cast<uintptr_t>(row) % 64 != 0; }

// Rows come from memory, and a core has several times more places for lines on their way to its second cache
// than to its first.
TRIVIUM_INLINE void prefetch_row(const float* row, int64_t count) {
  for (int64_t k = 0; k < count; k += 16) __builtin_prefetch(row + k, 0, 2);
  if (is_split(row)) __builtin_prefetch(row + count - 1, 0, 2);
}

// fn(k, n) for whole vectors, then for the tail.
template <class Fn>
TRIVIUM_INLINE void for_vectors(int64_t count, const Fn& fn) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) fn(k, kLanes);
  if (k < count) fn(k, static_cast<int>(count - k));
}
TRIVIUM_INLINE F32 load_n(const float* p, int n) { return n == kLanes ? load(p) : load(p, n); }
TRIVIUM_INLINE void store_n(float* p, F32 x, int n) {
  if (n == kLanes)
    store(p, x);
  else
    store(p, x, n);
}

// lut::dot of a dense row up to its last additions, those of the lanes. A sum of zeros may have another sign.
TRIVIUM_INLINE F32 row_products(const float* w, const float* g, int64_t count) {
  constexpr int kParts = lut::kPartials / kLanes;
  F32 p[kParts];
#pragma GCC unroll 8
  for (int v = 0; v < kParts; ++v)
    p[v] = count >= lut::kPartials ? mul(load(w + v * kLanes), load(g + v * kLanes)) : zero();
  int64_t k = count >= lut::kPartials ? lut::kPartials : 0;
  for (; k + lut::kPartials <= count; k += lut::kPartials)
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v)
      p[v] = add(p[v], mul(load(w + k + v * kLanes), load(g + k + v * kLanes)));
  if (k < count)
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) {
      const int64_t left = count - k - v * kLanes;
      if (left <= 0) continue;
      const int n = left < kLanes ? static_cast<int>(left) : kLanes;
      p[v] = add(p[v], mul(load_n(w + k + v * kLanes, n), load_n(g + k + v * kLanes, n)));
    }
#pragma GCC unroll 8
  for (int half = kParts / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) p[v] = add(p[v], p[v + half]);
  return p[0];
}

TRIVIUM_INLINE float row_dot(const float* w, const float* g, int64_t count) {
  return reduce_add(row_products(w, g, count));
}

// The sum of a run of rows in up to 4 vectors of one row, kept in registers: fn<vectors, n>(first column), n
// lanes of the last vector being used.
template <class Fn>
TRIVIUM_INLINE void for_columns(int64_t outputs, const Fn& fn) {
  constexpr int64_t kChunk = 4 * kLanes;
  int64_t k = 0;
  for (; k + kChunk <= outputs; k += kChunk) fn.template operator()<4>(k, kLanes);
  const int64_t left = outputs - k, vectors = left / kLanes;
  if (vectors == 3) fn.template operator()<3>(k, kLanes);
  if (vectors == 2) fn.template operator()<2>(k, kLanes);
  if (vectors == 1) fn.template operator()<1>(k, kLanes);
  if (left % kLanes) fn.template operator()<1>(k + vectors * kLanes, static_cast<int>(left % kLanes));
}

typedef float FloatLanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes32 __attribute__((vector_size(4 * kLanes)));

template <class V, class T>
TRIVIUM_INLINE V lanes_at(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
TRIVIUM_INLINE void put_lanes(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The low (or high) halves, of `half` lanes, of all groups of 2 * half lanes of a, then of b.
template <int half, bool high, size_t... lane>
TRIVIUM_INLINE FloatLanes halves(FloatLanes a, FloatLanes b, std::index_sequence<lane...>) {
  return __builtin_shufflevector(a, b, (lane / half * 2 * half + lane % half + (high ? half : 0))...);
}

// v[0], lane k: reduce_add of v[k], the same additions for kLanes vectors at once. v[half] and up are used
// up.
template <int half = kLanes / 2>
TRIVIUM_INLINE void reduce_lanes(FloatLanes (&v)[kLanes]) {
  constexpr auto kAll = std::make_index_sequence<kLanes>();
#pragma GCC unroll 8
  for (int m = 0; m < half; ++m)
    v[m] =
        halves<half, false>(v[2 * m], v[2 * m + 1], kAll) + halves<half, true>(v[2 * m], v[2 * m + 1], kAll);
  if constexpr (half > 1) reduce_lanes<half / 2>(v);
}

// check_detectors of kLanes rows at once; xt holds them transposed: [inputs][kLanes].
TRIVIUM_INLINE void check_detectors_tile(const LutDetectArgs& a, const float* xt, int64_t row0,
                                         int64_t rows) {
  for (int64_t t = 0; t < a.num_tables; ++t) {
    const int32_t* pair = a.anchors + t * a.num_anchors * 2;
    IntLanes32 index = {}, min_index = IntLanes32{} - 1;
    FloatLanes min_delta = {}, least = FloatLanes{} + __builtin_huge_valf();
    for (int32_t r = 0; r < a.num_anchors; ++r, pair += 2) {
      if (pair[0] < 0 || pair[1] < 0) continue;
      FloatLanes x, y;
      __builtin_memcpy(&x, xt + int64_t{pair[0]} * kLanes, sizeof x);
      __builtin_memcpy(&y, xt + int64_t{pair[1]} * kLanes, sizeof y);
      const FloatLanes u = x - y, size = u < 0 ? -u : u;
      index |= ((u > 0) & (u >= a.cmp_eps)) & (1 << r);
      const IntLanes32 better = (size < least) | ((min_index < 0) & (u == u));
      min_index = better ? (IntLanes32{} + r) : min_index;
      min_delta = better ? u : min_delta;
      least = better ? size : least;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row0 + i) * a.num_tables + t;
      a.index[at] = index[i];
      if (a.min_delta) a.min_delta[at] = min_delta[i], a.min_index[at] = min_index[i];
    }
  }
}

void lut_check_detectors(const LutDetectArgs& a) {
  parallel_for((a.rows + kLanes - 1) / kLanes, [&](int64_t task, int) {
    const int64_t row0 = task * kLanes, rows = smaller(kLanes, a.rows - row0);
    if (rows < 4) {
      for (int64_t item = row0 * a.num_tables; item < (row0 + rows) * a.num_tables; ++item)
        lut::check_detectors_item(a, item);
      return;
    }
    auto* xt = static_cast<float*>(thread_scratch(a.inputs * kLanes * static_cast<int64_t>(sizeof(float))));
    for (int64_t i = 0; i < kLanes; ++i) {
      const float* x = a.x + (row0 + smaller(i, rows - 1)) * a.inputs;
      for (int64_t c = 0; c < a.inputs; ++c) xt[c * kLanes + i] = x[c];
    }
    check_detectors_tile(a, xt, row0, rows);
  });
}

inline constexpr int64_t kLutRows = 8;       // rows of x a task takes
inline constexpr int64_t kLutGroup = 4;      // table rows added at a time: as many streams for the memory
inline constexpr int64_t kLutRowsAhead = 8;  // table rows fetched ahead

// y = (accumulate: y +) sum over t of W[t, index[t]], t ascending. The indices of `samples` samples, this one
// included, follow each other.
TRIVIUM_INLINE void sum_rows(const LutTable& w, const int32_t* index, int64_t samples, float* y,
                             bool accumulate, float* sum) {
  const int64_t outputs = w.outputs, stride = w.cells * outputs, tables = w.num_tables;
  const auto row = [&](int64_t t) { return w.weights + t * stride + index[t] * outputs; };
  const auto row_ahead = [&](int64_t t) {
    const int64_t ahead = t + kLutRowsAhead;
    if (ahead < tables) return row(ahead);
    if (ahead >= samples * tables) return row(t);
    return w.weights + ahead % tables * stride + index[ahead] * outputs;
  };
  const bool split = is_split(w.weights);
  fill_zero(sum, outputs);
  int64_t t = 0;
  for (; t + kLutGroup <= tables; t += kLutGroup) {
    const float* rows[kLutGroup];
    const float* next[kLutGroup];
    for (int64_t g = 0; g < kLutGroup; ++g) rows[g] = row(t + g), next[g] = row_ahead(t + g);
    for_vectors(
        outputs, [&](int64_t k, int n) __attribute__((always_inline)) {
          F32 s = load_n(sum + k, n);
          for (int64_t g = 0; g < kLutGroup; ++g) {
            if (k % 16 == 0) __builtin_prefetch(next[g] + k, 0, 2);
            if (split && k + n == outputs) __builtin_prefetch(next[g] + outputs - 1, 0, 2);
            s = add(s, load_n(rows[g] + k, n));
          }
          store_n(sum + k, s, n);
        });
  }
  for (; t < tables; ++t)
    for_vectors(
        outputs, [&](int64_t k, int n) __attribute__((always_inline)) {
          store_n(sum + k, add(load_n(sum + k, n), load_n(row(t) + k, n)), n);
        });
  for_vectors(
      outputs, [&](int64_t k, int n) __attribute__((always_inline)) {
        const F32 s = load_n(sum + k, n);
        store_n(y + k, accumulate ? add(load_n(y + k, n), s) : s, n);
      });
}

void lut_fill_outputs(const LutForwardArgs& a) {
  const LutTable& w = a.table;
  parallel_for((a.rows + kLutRows - 1) / kLutRows, [&](int64_t task, int) {
    auto* sum = static_cast<float*>(thread_scratch(w.outputs * static_cast<int64_t>(sizeof(float))));
    const int64_t end = smaller(a.rows, (task + 1) * kLutRows);
    for (int64_t b = task * kLutRows; b < end; ++b)
      sum_rows(w, a.index + b * w.num_tables, end - b, a.y + b * w.outputs, a.accumulate != 0, sum);
  });
}

void lut_gather_x_gradients(const LutXGradientArgs& a) {
  const LutTable& w = a.table;
  const auto row = [&](int64_t t, int32_t cell) { return w.weights + (t * w.cells + cell) * w.outputs; };
  parallel_for((a.rows + kLutRows - 1) / kLutRows, [&](int64_t task, int) {
    const int64_t items = smaller(a.rows, (task + 1) * kLutRows) * w.num_tables;
    for (int64_t item = task * kLutRows * w.num_tables; item < items; ++item) {
      const int64_t next = item + kLutRowsAhead / 2;  // two rows an item
      if (next < items) {
        const int32_t cell = a.index[next], r = a.min_index[next];
        prefetch_row(row(next % w.num_tables, cell), w.outputs);
        prefetch_row(row(next % w.num_tables, r < 0 ? cell : cell ^ (1 << r)), w.outputs);
      }
      static_cast<float*>(a.delta)[item] =
          lut::gather_x_gradients_item<false>(a, item, [&](int64_t b, int64_t t, int32_t cell) {
            return row_dot(row(t, cell), a.gy + b * w.outputs, w.outputs);
          });
    }
  });
}

// What is added to (sgd: taken from) a row for each of its contributions: rate * gy, sgd: eta * rate * gy.
struct ScaledGradients {
  ScaledGradients(const float* gy, int64_t count, const LutWeightTarget& target);
  ~ScaledGradients() { delete[] values; }
  ScaledGradients(const ScaledGradients&) = delete;
  ScaledGradients& operator=(const ScaledGradients&) = delete;
  float* values;
};

ScaledGradients::ScaledGradients(const float* gy, int64_t count, const LutWeightTarget& target)
    : values(new float[static_cast<size_t>(count)]) {
  constexpr int64_t kPart = 1 << 14;
  parallel_for((count + kPart - 1) / kPart, [&](int64_t task, int) {
    for (int64_t i = task * kPart; i < smaller(count, (task + 1) * kPart); ++i) {
      const float v = lut::magnitude(gy[i]) <= lut::kGradientEps ? 0 : target.rate * gy[i];
      values[i] = target.sgd ? target.eta * v : v;
    }
  });
}

// One row of gW, or of W with sgd: the contributions of samples order[0 .. count), in that order.
TRIVIUM_INLINE void write_w_row(float* out, const float* scaled, const int32_t* order, int64_t count,
                                int64_t outputs, bool sgd) {
  for_columns(
      outputs, [&]<int kVectors>(int64_t k, int n) __attribute__((always_inline)) {
        F32 sums[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[v] = sgd ? load_n(out + k + v * kLanes, n) : zero();
        for (int64_t i = 0; i < count; ++i) {
          const float* g = scaled + order[i] * outputs + k;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            sums[v] = sgd ? sub(sums[v], load_n(g + v * kLanes, n)) : add(sums[v], load_n(g + v * kLanes, n));
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store_n(out + k + v * kLanes, sums[v], n);
      });
}

// Samples are sorted by cell first: every row of the gradient is then written once.
void lut_gather_w_gradients(const LutWGradientArgs& a) {
  const LutTable& w = a.table;
  const ScaledGradients scaled(a.gy, a.rows * w.outputs, a.target);
  parallel_for(w.num_tables, [&](int64_t t, int) {
    auto* ends = static_cast<int32_t*>(thread_scratch((w.cells + 1 + a.rows) * 4));
    int32_t* order = ends + w.cells + 1;
    fill_zero(ends, w.cells + 1);
    for (int64_t b = 0; b < a.rows; ++b) ++ends[a.index[b * w.num_tables + t] + 1];
    for (int64_t c = 0; c < w.cells; ++c) ends[c + 1] += ends[c];
    // After placing the samples, ends[c] is where row c's end.
    for (int64_t b = 0; b < a.rows; ++b)
      order[ends[a.index[b * w.num_tables + t]]++] = static_cast<int32_t>(b);
    const bool some = a.target.sgd || a.target.places.marks;  // only rows that have samples are written
    const bool packed = a.target.places.marks != nullptr;
    int64_t row = packed ? lut::rank_of_row(a.target.places, w.cells, t, 0) : t * w.cells;
    for (int64_t c = 0, begin = 0; c < w.cells; begin = ends[c++]) {
      const int64_t count = ends[c] - begin;
      if (count > 0 || !some)
        write_w_row(a.target.out + row * w.outputs, scaled.values, order + begin, count, w.outputs,
                    a.target.sgd != 0);
      row += count > 0 || !packed;
    }
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
