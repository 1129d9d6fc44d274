// Must not compile where spills are errors: 64 values live at once in the 32 registers of a thread.
extern "C" __global__ __launch_bounds__(1024, 2) void spills(const float* in, float* out) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = x[63 - i] * x[i];
}
