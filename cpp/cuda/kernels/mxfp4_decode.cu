// Exact float32 values of an MXFP4 matrix (OCP Microscaling Formats v1.0).
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

// An E2M1 code: its 3 low bits at the top of a float16's exponent and mantissa are the value times 2^-14.
GPU_DEVICE float fp4_value(uint32_t code) {
  const f16 tiny{static_cast<uint16_t>((code & 8u) << 12 | (code & 7u) << 9)};
  return to_float(tiny) * 16384.0f;
}

// One byte, two values a thread: neighbours read and write neighbouring addresses.
GPU_KERNEL(kElementwiseBlock) void mxfp4_decode_kernel(Mxfp4DecodeArgs a, int64_t bytes) {
  const int64_t i = global_thread();
  if (i >= bytes) return;
  const uint32_t codes = a.blocks[i];
  const float scale = mx_scale(a.scales[i / kMxBlockBytes]);
  a.y[2 * i] = fp4_value(codes & 15u) * scale;
  a.y[2 * i + 1] = fp4_value(codes >> 4) * scale;
}

}  // namespace

void mxfp4_decode(Stream stream, const Mxfp4DecodeArgs& a) {
  const int64_t bytes = a.rows * a.cols / 2;
  launch(stream, {.grid = {ceil_div(bytes, kElementwiseBlock)}, .block = kElementwiseBlock},
         mxfp4_decode_kernel, a, bytes);
}

}  // namespace trivium::TRIVIUM_GPU_NS
