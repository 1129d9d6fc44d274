// Embedding, conversion, rotary embedding and MXFP4 decoding on the CPU.
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace trivium::cpu {
namespace {

template <class T>
T from_double(double value) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(round_to_odd(value));
  else if constexpr (std::is_same_v<T, f16>)
    return to_f16(round_to_odd(value));
  else
    return static_cast<T>(value);
}

template <class T>
double as_double(T value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return to_float(value);
}

// Rotates one head in place; table holds (cos, sin) pairs of its token.
void rotate(float* x, const float* table, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float c = table[2 * i], s = table[2 * i + 1], a = x[i], b = x[i + half];
    x[i] = a * c - b * s;
    x[i + half] = b * c + a * s;
  }
}

template <class T>
void write_cache(const PagedKv& kv, void* base, int64_t slot, int64_t position, int64_t head,
                 int64_t num_kv_heads, int64_t head_dim, const float* from) {
  const int64_t block = position / kv.page_size;
  const int64_t page = kv.block_table[slot * kv.blocks_per_slot + block % kv.blocks_per_slot];
  T* to = static_cast<T*>(base) +
          ((page * num_kv_heads + head) * kv.page_size + position % kv.page_size) * head_dim;
  for (int64_t d = 0; d < head_dim; ++d) {
    if constexpr (std::is_same_v<T, bf16>)
      to[d] = to_bf16(from[d]);
    else
      to[d] = from[d];
  }
}

}  // namespace

void convert(const ConvertArgs& a) {
  dispatch_dtype<float, bf16, f16, double>(a.from_dtype, "convert", [&]<class From>() {
    dispatch_dtype<float, bf16, f16, double>(a.to_dtype, "convert", [&]<class To>() {
      const auto* from = static_cast<const From*>(a.from);
      auto* to = static_cast<To*>(a.to);
      for (int64_t i = 0; i < a.count; ++i) to[i] = from_double<To>(as_double(from[i]));
    });
  });
}

void embedding(const EmbeddingArgs& a) {
  dispatch_dtype<float, bf16, f16>(a.table_dtype, "embedding", [&]<class T>() {
    for (int64_t t = 0; t < a.tokens; ++t) {
      const T* row = static_cast<const T*>(a.table) + static_cast<int64_t>(a.ids[t]) * a.dim;
      for (int64_t i = 0; i < a.dim; ++i) a.y[t * a.dim + i] = to_float(row[i]);
    }
  });
}

void rope_table(const RopeTableArgs& a) {
  for (int64_t t = 0; t < a.tokens; ++t)
    for (int64_t i = 0; i < a.pairs; ++i) {
      const double angle = a.positions[t] * a.inv_freq[i];
      float* to = a.table + 2 * (t * a.pairs + i);
      to[0] = static_cast<float>(std::cos(angle) * a.concentration);
      to[1] = static_cast<float>(std::sin(angle) * a.concentration);
    }
}

void rope(const RopeArgs& a) {
  parallel_for(a.tokens, [&](int64_t t, int) {
    for (int64_t h = 0; h < a.heads; ++h)
      rotate(a.x + t * a.x_stride + h * a.head_dim, a.table + t * a.head_dim, a.head_dim / 2);
  });
}

void rope_kv(const RopeKvArgs& a) {
  parallel_for(a.tokens, [&](int64_t t, int) {
    float* q = a.qkv + t * (a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
    float* k = q + a.num_heads * a.head_dim;
    const float* v = k + a.num_kv_heads * a.head_dim;
    const float* table = a.table + t * a.head_dim;
    for (int64_t h = 0; h < a.num_heads + a.num_kv_heads; ++h)
      rotate(q + h * a.head_dim, table, a.head_dim / 2);
    for (int64_t h = 0; h < a.num_kv_heads; ++h)
      dispatch_dtype<float, bf16>(a.kv.dtype, "rope_kv", [&]<class T>() {
        write_cache<T>(a.kv, a.kv.k, a.slots[t], a.positions[t], h, a.num_kv_heads, a.head_dim,
                       k + h * a.head_dim);
        write_cache<T>(a.kv, a.kv.v, a.slots[t], a.positions[t], h, a.num_kv_heads, a.head_dim,
                       v + h * a.head_dim);
      });
  });
}

void mxfp4_decode(const Mxfp4DecodeArgs& a) {
  const int64_t blocks = a.cols / kMxBlock;
  parallel_for(a.rows, [&](int64_t row, int) {
    for (int64_t b = row * blocks; b < (row + 1) * blocks; ++b) {
      const float scale = mx_scale(a.scales[b]);
      for (int i = 0; i < kMxBlockBytes; ++i) {
        const uint8_t byte = a.blocks[b * kMxBlockBytes + i];
        a.y[b * kMxBlock + 2 * i] = kFp4Values[byte & 15] * scale;
        a.y[b * kMxBlock + 2 * i + 1] = kFp4Values[byte >> 4] * scale;
      }
    }
  });
}

}  // namespace trivium::cpu
