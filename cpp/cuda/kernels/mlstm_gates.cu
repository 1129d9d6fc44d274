// Gates of the mLSTM: log sigmoids, their sums within chunks, and the stabilisers.
#include "cuda/mlstm.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kThreads = 256;

template <class T>
GPU_KERNEL(kThreads)
void gates_kernel(MlstmGatesArgs a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.rows * a.tokens) return;
  const float i = to_float(as<T>(a.i)[at]), f = to_float(as<T>(a.f)[at]);
  a.li[at] = a.sigmoid_input ? log_sigmoid(i) : i;
  if (a.forget == MlstmForget::preactivation)
    a.lf[at] = log_sigmoid(f);
  else
    a.lf[at] =
        a.forget == MlstmForget::log || at % a.tokens % a.chunk == 0 ? f : f - to_float(as<T>(a.f)[at - 1]);
}

// One block a chunk. Three threads walk the chunk, each in the order of its recurrence. Sums over the chunk
// are double: of equal gates all chunks lose the same, and the states would carry the sum of it.
GPU_KERNEL(64)
void gate_sums_kernel(MlstmSizes size, const float* li, const float* lf, GateSums out, float* intra) {
  GPU_SHARED(float, input, kMaxChunk);
  GPU_SHARED(float, forget, kMaxChunk);
  const ChunkPlace at(size, blockIdx.x);
  const int64_t first = at.head * size.tokens + at.first;
  for (int l = static_cast<int>(threadIdx.x); l < at.count; l += 64) {
    input[l] = li[first + l];
    forget[l] = lf[first + l];
  }
  sync_block();
  if (threadIdx.x == 0) {
    double whole = 0;
    float near = 0;
    for (int l = 0; l < at.count; ++l) {
      near = l % kEdge == 0 ? forget[l] : near + forget[l];
      whole += static_cast<double>(forget[l]);
      out.b[first + l] = static_cast<float>(whole);
      out.pre[first + l] = near;
    }
    out.g[blockIdx.x] = static_cast<float>(whole);
  } else if (threadIdx.x == 1) {
    double whole = 0;
    float near = 0, top = -INFINITY;
    for (int l = at.count - 1; l >= 0; --l) {
      if (l % kEdge == kEdge - 1) near = 0;
      const auto weight = static_cast<float>(whole + static_cast<double>(input[l]));
      top = max(top, weight);
      out.a[first + l] = weight;
      out.suf[first + l] = near;
      whole += static_cast<double>(forget[l]);
      near += forget[l];
    }
    out.top[blockIdx.x] = top;
  } else if (threadIdx.x == 2 && intra) {
    float largest = -INFINITY;
    for (int l = 0; l < at.count; ++l) {
      largest = l == 0 ? input[0] : max(forget[l] + largest, input[l]);
      intra[first + l] = largest;
    }
  }
}

GPU_KERNEL(kThreads)
void scan_m_kernel(MlstmSizes size, MlstmOptions options, GateSums sums, const float* m0, float* m_states) {
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunks = size.num_chunks();
  if (head >= size.batch * size.heads) return;
  float m = m0 && !options.sigmoid_input ? m0[head] : 0.0f;
  float* out = m_states + head * (chunks + 1);
  out[0] = m;
  for (int64_t k = 0; k < chunks; ++k) {
    m = options.sigmoid_input ? 0.0f : max(sums.g[head * chunks + k] + m, sums.top[head * chunks + k]);
    out[k + 1] = m;
  }
}

GPU_KERNEL(kThreads)
void finish_m_kernel(MlstmSizes size, MlstmOptions options, GateSums sums, const float* m_states, float* m) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= size.batch * size.heads * size.tokens) return;
  const int64_t head = at / size.tokens, chunk = at % size.tokens / size.chunk;
  const float before = m_states[head * (size.num_chunks() + 1) + chunk];
  m[at] = options.sigmoid_input ? 0.0f : max(max(sums.b[at] + before, m[at]), options.m_floor);
}

}  // namespace

void mlstm_gate_sums(Stream stream, const MlstmSizes& size, const float* li, const float* lf,
                     const GateSums& sums, float* intra) {
  launch(stream, {.grid = {size.batch * size.heads * size.num_chunks()}, .block = 64}, gate_sums_kernel, size,
         li, lf, sums, intra);
}

void mlstm_scan_m(Stream stream, const MlstmSizes& size, const MlstmOptions& options, const GateSums& sums,
                  const float* m0, float* m_states) {
  launch(stream, {.grid = {ceil_div(size.batch * size.heads, kThreads)}, .block = kThreads}, scan_m_kernel,
         size, options, sums, m0, m_states);
}

void mlstm_finish_m(Stream stream, const MlstmSizes& size, const MlstmOptions& options, const GateSums& sums,
                    const float* m_states, float* m) {
  launch(stream, {.grid = {ceil_div(size.batch * size.heads * size.tokens, kThreads)}, .block = kThreads},
         finish_m_kernel, size, options, sums, m_states, m);
}

void mlstm_gates(Stream stream, const MlstmGatesArgs& a) {
  dispatch_dtype<float, bf16, f16>(a.dtype, "mlstm_gates", [&]<class T>() {
    launch(stream, {.grid = {ceil_div(a.rows * a.tokens, kThreads)}, .block = kThreads}, gates_kernel<T>, a);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
