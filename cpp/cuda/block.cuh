// Reductions and scans over a warp or a block, for any warp size. Every lane of the warp, or thread of the
// block, calls them. Orders are fixed, so that equal inputs give equal bits; all callers get the same result.
//
// The order of a block's sum depends on the warp size but not on the block: xor butterflies within warps,
// then the warps in ascending order.
#pragma once

#include "cuda/gpu.cuh"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kMaxWarps = 32;  // of a block of 1024 threads

template <class T>
GPU_DEVICE T warp_sum(T v) {
#pragma unroll
  for (int m = kWarpSize / 2; m > 0; m /= 2) v = v + shfl_xor(v, m);
  return v;
}

template <class T>
GPU_DEVICE T warp_max(T v) {
#pragma unroll
  for (int m = kWarpSize / 2; m > 0; m /= 2) v = max(v, shfl_xor(v, m));
  return v;
}

template <class T>
GPU_DEVICE T block_sum(T v) {
  GPU_SHARED(T, parts, kMaxWarps);
  v = warp_sum(v);
  sync_block();  // the previous call's parts have been read
  if (lane_id() == 0) parts[warp_id()] = v;
  sync_block();
  T sum = parts[0];
  for (int w = 1; w < num_warps(); ++w) sum = sum + parts[w];
  return sum;
}

template <class T>
GPU_DEVICE T block_max(T v) {
  GPU_SHARED(T, parts, kMaxWarps);
  v = warp_max(v);
  sync_block();  // the previous call's parts have been read
  if (lane_id() == 0) parts[warp_id()] = v;
  sync_block();
  T largest = parts[0];
  for (int w = 1; w < num_warps(); ++w) largest = max(largest, parts[w]);
  return largest;
}

// Integers: the sum over this and all lower lanes.
template <class T>
GPU_DEVICE T warp_inclusive_scan(T v) {
#pragma unroll
  for (int n = 1; n < kWarpSize; n *= 2) {
    const T below = shfl_up(v, n);
    if (lane_id() >= n) v = v + below;
  }
  return v;
}

// Integers: the sum over this and all lower threads; `total` becomes the sum over the block.
template <class T>
GPU_DEVICE T block_inclusive_scan(T v, T& total) {
  GPU_SHARED(T, parts, kMaxWarps);
  v = warp_inclusive_scan(v);
  sync_block();  // the previous call's parts have been read
  if (lane_id() == kWarpSize - 1) parts[warp_id()] = v;
  sync_block();
  T before{};
  total = T{};
  for (int w = 0; w < num_warps(); ++w) {
    if (w == warp_id()) before = total;
    total = total + parts[w];
  }
  return before + v;
}

// A value and where it was found; 8 bytes, so that it passes through shuffles.
struct ArgMax {
  float value;
  int32_t index;
};

// The larger value, at equal values the lower index. NaN never wins against a number.
GPU_DEVICE ArgMax better(ArgMax a, ArgMax b) {
  const bool take_b = b.value > a.value || (b.value == a.value && b.index < a.index) ||
                      (isnan(a.value) && (!isnan(b.value) || b.index < a.index));
  return take_b ? b : a;
}

GPU_DEVICE ArgMax warp_argmax(ArgMax v) {
#pragma unroll
  for (int m = kWarpSize / 2; m > 0; m /= 2) v = better(v, shfl_xor(v, m));
  return v;
}

GPU_DEVICE ArgMax block_argmax(ArgMax v) {
  GPU_SHARED(ArgMax, parts, kMaxWarps);
  v = warp_argmax(v);
  sync_block();  // the previous call's parts have been read
  if (lane_id() == 0) parts[warp_id()] = v;
  sync_block();
  ArgMax best = parts[0];
  for (int w = 1; w < num_warps(); ++w) best = better(best, parts[w]);
  return best;
}

}  // namespace trivium::TRIVIUM_GPU_NS
