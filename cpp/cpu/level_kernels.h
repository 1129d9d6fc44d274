// The kernels of one CPU level: linear, grouped expert products, RMSNorm, SwiGLU, attention, LUT.
#pragma once

#include "cpu/attention.h"
#include "cpu/levels.h"
#include "cpu/linear_maximum.h"
#include "cpu/lut_sequence_level.h"
#include "cpu/lut_sequence_w_level.h"
#include "cpu/matmul.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

// y[c, n] (+)= value + bias[n].
void write_linear(void* context, int64_t n0, int rows, int64_t c0, int cols, const float* out) {
  const auto& a = *static_cast<const LinearArgs*>(context);
  for (int c = 0; c < cols; ++c) {
    float* y = a.y + (c0 + c) * a.y_stride + n0;
    for (int r = 0; r < rows; ++r) {
      const float sum = out[r * cols + c] + vector_at(a.bias, n0 + r);
      y[r] = a.accumulate ? y[r] + sum : sum;
    }
  }
}

template <class X>
void linear_as(const LinearArgs& a) {
  const Columns<X> x{static_cast<const X*>(a.x), a.x_stride, nullptr, a.m};
  const TileSink sink{write_linear, const_cast<LinearArgs*>(&a)};
  const int64_t run = task_rows(a.n);
  parallel_for((a.n + run - 1) / run, [&](int64_t task, int) {
    const int64_t n0 = task * run, n1 = n0 + run < a.n ? n0 + run : a.n;
    multiply<X>(a.w, 0, n0, n1, x, a.k, sink);
  });
}

void linear(const LinearArgs& a) {
  if (a.x_dtype == Dtype::bf16)
    linear_as<bf16>(a);
  else
    linear_as<float>(a);
}

void linear_maximum(const LinearMaximumArgs& a) {
  const bool done = a.x_dtype == Dtype::bf16 ? screened_maximum<bf16>(a) : screened_maximum<float>(a);
  if (!done)
    linear({.x = a.x,
            .w = a.w,
            .bias = {},
            .y = a.y,
            .m = a.m,
            .n = a.n,
            .k = a.k,
            .x_stride = a.k,
            .y_stride = a.n,
            .x_dtype = a.x_dtype,
            .accumulate = 0});
}

// gate * sigmoid(alpha gate) * (linear + 1) with the clamps of gpt-oss; one value. Both users compute it on a
// full vector, so that its bits never depend on the position in a row.
TRIVIUM_INLINE F32 swiglu_vector(F32 gate, F32 linear, float alpha, float limit) {
  // x86 min and max return their second operand on NaN: the data stands second so that a NaN stays one.
  const F32 g = min(set1(limit), gate);
  const F32 u = min(set1(limit), max(set1(-limit), linear));
  const F32 e = exp(mul(set1(-alpha), g));
  return mul(div(g, add(set1(1.0f), e)), add(u, set1(1.0f)));
}

template <class T>
TRIVIUM_INLINE void swiglu_row(const float* x, T* y, int64_t dim, float alpha, float limit) {
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int n = dim - i < kLanes ? static_cast<int>(dim - i) : kLanes;
    float gate[kLanes] = {}, up[kLanes] = {};
    for (int j = 0; j < n; ++j) gate[j] = x[2 * (i + j)], up[j] = x[2 * (i + j) + 1];
    const F32 a = swiglu_vector(load(gate), load(up), alpha, limit);
    if (n == kLanes)
      store(y + i, a);
    else
      store(y + i, a, n);
  }
}

void swiglu(const SwigluArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    const float* x = a.x + row * 2 * a.dim;
    if (a.y_dtype == Dtype::bf16)
      swiglu_row(x, static_cast<bf16*>(a.y) + row * a.dim, a.dim, a.alpha, a.limit);
    else
      swiglu_row(x, static_cast<float*>(a.y) + row * a.dim, a.dim, a.alpha, a.limit);
  });
}

// Where the gate/linear values of one task go before the activation: [columns, width] floats in scratch.
struct GateUpBuffer {
  const MoeGateUpArgs* args;
  int64_t bias_row;  // place in the bias of output row 0
  int64_t n_begin, width;
  float* values;
};

void write_gate_up(void* context, int64_t n0, int rows, int64_t c0, int cols, const float* out) {
  const auto& b = *static_cast<const GateUpBuffer*>(context);
  for (int c = 0; c < cols; ++c)
    for (int r = 0; r < rows; ++r)
      b.values[(c0 + c) * b.width + n0 - b.n_begin + r] =
          out[r * cols + c] + vector_at(b.args->bias, b.bias_row + n0 + r);
}

inline constexpr int64_t kMoeChunk = 256;  // x rows of an expert handled at a time, bounds the scratch

template <class X>
void moe_gate_up_as(const MoeGateUpArgs& a) {
  const int64_t rows = 2 * a.inter, run = task_rows(rows), chunks = (rows + run - 1) / run;
  parallel_for(a.num_experts * chunks, [&](int64_t task, int) {
    const int64_t e = task / chunks, n0 = task % chunks * run;
    const int64_t n1 = n0 + run < rows ? n0 + run : rows, pairs = (n1 - n0) / 2;
    auto* values = static_cast<float*>(second_scratch(kMoeChunk * run * static_cast<int64_t>(sizeof(float))));
    GateUpBuffer buffer{&a, e * rows, n0, n1 - n0, values};
    for (int64_t first = a.offsets[e]; first < a.offsets[e + 1]; first += kMoeChunk) {
      const int64_t left = a.offsets[e + 1] - first, count = left < kMoeChunk ? left : kMoeChunk;
      const Columns<X> x{static_cast<const X*>(a.x), a.hidden, a.tokens_of_row + first, count};
      multiply<X>(a.w, e * rows, n0, n1, x, a.hidden, {write_gate_up, &buffer});
      for (int64_t c = 0; c < count; ++c)
        swiglu_row(values + c * buffer.width, static_cast<X*>(a.act) + (first + c) * a.inter + n0 / 2, pairs,
                   a.alpha, a.limit);
    }
  });
}

void moe_gate_up(const MoeGateUpArgs& a) {
  if (a.dtype == Dtype::bf16)
    moe_gate_up_as<bf16>(a);
  else
    moe_gate_up_as<float>(a);
}

struct DownTarget {
  const MoeDownArgs* args;
  int64_t bias_row;  // place in the bias of output row 0
  float* y;          // row of the expert's first x row
};

void write_down(void* context, int64_t n0, int rows, int64_t c0, int cols, const float* out) {
  const auto& t = *static_cast<const DownTarget*>(context);
  for (int c = 0; c < cols; ++c)
    for (int r = 0; r < rows; ++r)
      t.y[(c0 + c) * t.args->hidden + n0 + r] =
          out[r * cols + c] + vector_at(t.args->bias, t.bias_row + n0 + r);
}

template <class X>
void moe_down_as(const MoeDownArgs& a) {
  const int64_t run = task_rows(a.hidden), chunks = (a.hidden + run - 1) / run;
  parallel_for(a.num_experts * chunks, [&](int64_t task, int) {
    const int64_t e = task / chunks, n0 = task % chunks * run;
    const int64_t n1 = n0 + run < a.hidden ? n0 + run : a.hidden;
    const int64_t first = a.offsets[e], count = a.offsets[e + 1] - first;
    if (count == 0) return;
    DownTarget target{&a, e * a.hidden, a.y + first * a.hidden};
    const Columns<X> x{static_cast<const X*>(a.act) + first * a.inter, a.inter, nullptr, count};
    multiply<X>(a.w, e * a.hidden, n0, n1, x, a.inter, {write_down, &target});
  });
}

void moe_down(const MoeDownArgs& a) {
  if (a.dtype == Dtype::bf16)
    moe_down_as<bf16>(a);
  else
    moe_down_as<float>(a);
}

template <class T>
TRIVIUM_INLINE F32 load_upto(const T* p, int64_t left) {
  return left >= kLanes ? load(p) : load(p, static_cast<int>(left));
}

template <class T>
TRIVIUM_INLINE void store_upto(T* p, F32 x, int64_t left) {
  if (left >= kLanes)
    store(p, x);
  else
    store(p, x, static_cast<int>(left));
}

template <class X, class Y>
void rms_norm_as(const RmsNormArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    X* x = static_cast<X*>(a.x) + row * a.dim;
    if constexpr (std::is_same_v<X, float>)
      for (int64_t i = 0; a.add && i < a.dim; ++i) x[i] += a.add[row * a.dim + i];
    Y* y = static_cast<Y*>(a.y) + row * a.dim;
    F32 sum = zero();
    for (int64_t i = 0; i < a.dim; i += kLanes) {
      const F32 v = load_upto(x + i, a.dim - i);
      sum = fma(v, v, sum);
    }
    const float mean = reduce_add(sum) / static_cast<float>(a.dim);
    const F32 inverse = set1(1.0f / __builtin_sqrtf(mean + a.eps));
    const auto scale_by = [&](const auto* w) {
      for (int64_t i = 0; i < a.dim; i += kLanes) {
        const F32 v = mul(load_upto(x + i, a.dim - i), inverse);
        store_upto(y + i, mul(v, load_upto(w + i, a.dim - i)), a.dim - i);
      }
    };
    if (a.w.dtype == Dtype::bf16)
      scale_by(static_cast<const bf16*>(a.w.data));
    else if (a.w.dtype == Dtype::f16)
      scale_by(static_cast<const f16*>(a.w.data));
    else
      scale_by(static_cast<const float*>(a.w.data));
  });
}

void rms_norm(const RmsNormArgs& a) {
  TRIVIUM_CHECK(!a.add || a.x_dtype == Dtype::f32, "rms_norm: adding to x needs float32, x is ", a.x_dtype);
  const bool x16 = a.x_dtype == Dtype::bf16, y16 = a.y_dtype == Dtype::bf16;
  if (x16) return y16 ? rms_norm_as<bf16, bf16>(a) : rms_norm_as<bf16, float>(a);
  return y16 ? rms_norm_as<float, bf16>(a) : rms_norm_as<float, float>(a);
}

const LevelKernels& level_kernels() {
#if defined(__AVX512BF16__)
  constexpr const char* kName = "avx512-bf16";
  constexpr bool kBf16Dot = true;
#elif defined(__AVX2__)
  constexpr const char* kName = "avx2";
  constexpr bool kBf16Dot = false;
#else
  constexpr const char* kName = "scalar";
  constexpr bool kBf16Dot = false;
#endif
  static constexpr LevelKernels kTable{
      .name = kName,
      .bf16_dot = kBf16Dot,
      .screen_bits = static_cast<int>(kGroupBytes * 8 / kScreenGroup),
      .linear = linear,
      .linear_maximum = linear_maximum,
      .moe_gate_up = moe_gate_up,
      .moe_down = moe_down,
      .rms_norm = rms_norm,
      .attention = attention,
      .swiglu = swiglu,
      .lut_check_detectors = lut_check_detectors,
      .lut_fill_outputs = lut_fill_outputs,
      .lut_gather_x_gradients = lut_gather_x_gradients,
      .lut_gather_w_gradients = lut_gather_w_gradients,
      .lut_fill_outputs_for_sequence = lut_fill_outputs_for_sequence,
      .lut_gather_x_gradients_for_sequence = lut_gather_x_gradients_for_sequence,
      .lut_gather_w_gradients_for_sequence = lut_gather_w_gradients_for_sequence,
      .lut_decode = lut_decode,
      .lut_mark_pairs = lut_mark_pairs,
      .mlstm = mlstm_kernels,
  };
  return kTable;
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
