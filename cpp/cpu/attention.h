// Attention of one CPU level over paged keys and values. Included by level_kernels.h.
//
//   s_j = scale * q . k_j,  M = max(max_j s_j, sink),  o = sum_j exp(s_j - M) v_j / (sum_j exp(s_j - M) +
//   exp(sink - M))
//
// One task is one token and one kv head with its group of query heads. Keys are visited in ascending position
// and sums start at the first visible one, so a query's bits depend on its position only, not on the step it
// is computed in.
#pragma once

#include "core/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "ops/args.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// Calls fn(position, pointer to head_dim elements) for the positions [first, last] of one slot and kv head.
template <class T, class Fn>
TRIVIUM_INLINE void for_each_position(const AttentionArgs& a, const void* base, int64_t slot, int64_t head,
                                      int64_t first, int64_t last, Fn&& fn) {
  const int64_t page_size = a.kv.page_size, stride = a.num_kv_heads * page_size * a.head_dim;
  const int32_t* table = a.kv.block_table + slot * a.kv.blocks_per_slot;
  for (int64_t j = first; j <= last;) {
    const int64_t block = j / page_size, end = (block + 1) * page_size;
    const T* page = static_cast<const T*>(base) + table[block % a.kv.blocks_per_slot] * stride +
                    head * page_size * a.head_dim;
    for (; j < end && j <= last; ++j) fn(j, page + (j - block * page_size) * a.head_dim);
  }
}

template <class T>
TRIVIUM_INLINE float dot_key(const float* q, const T* key, int64_t dim) {
  F32 acc = zero();
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) acc = fma(load(q + d), load(key + d), acc);
  if (d < dim)
    acc = fma(load(q + d, static_cast<int>(dim - d)), load(key + d, static_cast<int>(dim - d)), acc);
  return reduce_add(acc);
}

// Turns scores into weights in place, given their maximum; returns their sum plus the sink's share.
TRIVIUM_INLINE float softmax_row(float* scores, int64_t count, float maximum, bool has_sink, float sink) {
  F32 sum = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    if (n == kLanes) {
      const F32 p = exp(sub(load(scores + i), set1(maximum)));
      store(scores + i, p);
      sum = add(sum, p);
    } else {
      store(scores + i, exp(sub(load(scores + i, n), set1(maximum))), n);
      sum = add(sum, load(scores + i, n));  // lanes past the end count as zero
    }
  }
  float total = reduce_add(sum);
  if (has_sink) {
    float share[kLanes];
    store(share, exp(set1(sink - maximum)));
    total += share[0];
  }
  return total;
}

// out[d] = sum_j weights[j] value_j[d] / total for kWidth vectors of the head dimension starting at d0.
template <int kWidth, class T, class Y>
TRIVIUM_INLINE void weigh_values(const AttentionArgs& a, int64_t slot, int64_t head, int64_t first,
                                 int64_t last, const float* weights, float total, int64_t d0, Y* out) {
  F32 acc[kWidth];
  for (int i = 0; i < kWidth; ++i) acc[i] = zero();
  for_each_position<T>(
      a, a.kv.v, slot, head, first, last, [&](int64_t j, const T* value) __attribute__((always_inline)) {
        const F32 w = set1(weights[j - first]);
#pragma GCC unroll 4
        for (int i = 0; i < kWidth; ++i) acc[i] = fma(w, load(value + d0 + i * kLanes), acc[i]);
      });
  for (int i = 0; i < kWidth; ++i) store(out + d0 + i * kLanes, div(acc[i], set1(total)));
}

// Head dimensions that are no multiple of the vector.
template <class T, class Y>
TRIVIUM_INLINE void weigh_values_tail(const AttentionArgs& a, int64_t slot, int64_t head, int64_t first,
                                      int64_t last, const float* weights, float total, int64_t d0, Y* out) {
  const int n = static_cast<int>(a.head_dim - d0);
  F32 acc = zero();
  for_each_position<T>(a, a.kv.v, slot, head, first, last, [&](int64_t j, const T* value) {
    acc = fma(set1(weights[j - first]), load(value + d0, n), acc);
  });
  store(out + d0, div(acc, set1(total)), n);
}

template <class T, class Y>
void attend(const AttentionArgs& a, int64_t token, int64_t kv_head) {
  const int64_t group = a.num_heads / a.num_kv_heads, position = a.positions[token], slot = a.slots[token];
  const int64_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
  const int64_t count = position - first + 1;
  float* scores = static_cast<float*>(thread_scratch(group * count * static_cast<int64_t>(sizeof(float))));
  const float* q = a.q + token * a.q_stride + kv_head * group * a.head_dim;
  for_each_position<T>(a, a.kv.k, slot, kv_head, first, position, [&](int64_t j, const T* key) {
    for (int64_t h = 0; h < group; ++h)
      scores[h * count + j - first] = a.scale * dot_key(q + h * a.head_dim, key, a.head_dim);
  });
  for (int64_t h = 0; h < group; ++h) {
    const int64_t head = kv_head * group + h;
    float* row = scores + h * count;
    const bool has_sink = a.sinks.data != nullptr;
    float sink = 0, maximum = row[0];
    for (int64_t j = 1; j < count; ++j) maximum = row[j] > maximum ? row[j] : maximum;
    if (has_sink) {
      sink = a.sinks.dtype == Dtype::bf16  ? to_float(static_cast<const bf16*>(a.sinks.data)[head])
             : a.sinks.dtype == Dtype::f16 ? to_float(static_cast<const f16*>(a.sinks.data)[head])
                                           : static_cast<const float*>(a.sinks.data)[head];
      maximum = sink > maximum ? sink : maximum;
    }
    const float total = softmax_row(row, count, maximum, has_sink, sink);
    Y* out = static_cast<Y*>(a.out) + (token * a.num_heads + head) * a.head_dim;
    int64_t d = 0;
    for (; d + 4 * kLanes <= a.head_dim; d += 4 * kLanes)
      weigh_values<4, T>(a, slot, kv_head, first, position, row, total, d, out);
    for (; d + kLanes <= a.head_dim; d += kLanes)
      weigh_values<1, T>(a, slot, kv_head, first, position, row, total, d, out);
    if (d < a.head_dim) weigh_values_tail<T>(a, slot, kv_head, first, position, row, total, d, out);
  }
}

void attention(const AttentionArgs& a) {
  parallel_for(a.tokens * a.num_kv_heads, [&](int64_t task, int) {
    const int64_t token = task / a.num_kv_heads, head = task % a.num_kv_heads;
    const bool kv16 = a.kv.dtype == Dtype::bf16, out16 = a.out_dtype == Dtype::bf16;
    if (kv16)
      out16 ? attend<bf16, bf16>(a, token, head) : attend<bf16, float>(a, token, head);
    else
      out16 ? attend<float, bf16>(a, token, head) : attend<float, float>(a, token, head);
  });
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
