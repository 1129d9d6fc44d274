// What the LUT kernels share: items as threads, groups of 32 threads, owners of table rows.
#pragma once

#include "cuda/gpu.cuh"
#include "ops/lut_product_items.h"
#include "ops/lut_staged_items.h"

namespace trivium::TRIVIUM_GPU_NS {

inline constexpr int kLutBlock = 256;

// kBlocks: of GPU_KERNEL, 0: the compiler's choice.
template <class Args, void (*item)(const Args&, int64_t), int kBlocks>
GPU_KERNEL(kLutBlock, kBlocks)
void lut_items_kernel(Args a, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLutBlock + threadIdx.x;
  if (i < count) item(a, i);
}

template <class Args, void (*item)(const Args&, int64_t), int kBlocks = 0>
void launch_items(Stream stream, const Args& a, int64_t count) {
  launch(stream, {.grid = {ceil_div(count, kLutBlock)}, .block = kLutBlock},
         lut_items_kernel<Args, item, kBlocks>, a, count);
}

// fn<fixed>()
template <class Fn>
void dispatch_fixed(const LutNumerics& numerics, const Fn& fn) {
  if (numerics.rescale > 0)
    fn.template operator()<true>();
  else
    fn.template operator()<false>();
}

// Groups of 32 threads whatever the warp size: a dot product has 32 partial sums.
inline int64_t lut_group_blocks(int64_t groups) { return ceil_div(groups * lut::kPartials, kLutBlock); }
GPU_DEVICE int lut_lane() { return static_cast<int>(threadIdx.x) % lut::kPartials; }
GPU_DEVICE int64_t lut_group() {
  return (static_cast<int64_t>(blockIdx.x) * kLutBlock + threadIdx.x) / lut::kPartials;
}
// The lanes of the warp that are in the caller's group.
GPU_DEVICE LaneMask lut_group_mask() {
  return full_mask() >> (kWarpSize - lut::kPartials) << (lane_id() / lut::kPartials * lut::kPartials);
}

// row . gy; every lane of the group calls it and gets the sum.
template <bool fixed>
GPU_DEVICE lut::Real<fixed> group_dot(const LutTable& w, const lut::Row& row, const float* gy) {
  lut::Real<fixed> sum = lut::partial_dot<fixed>(w, row, gy, lut_lane());
  for (int m = lut::kPartials / 2; m > 0; m /= 2) sum += shfl_xor(sum, m, lut_group_mask());
  return sum;
}

// Owners of weight gradients: `parts` a table, each a run of cells and `lanes` threads over a row's elements.
struct LutOwners {
  int64_t num_tables, parts, units, run, lanes;
  int64_t blocks() const { return ceil_div(num_tables * parts * lanes, kLutBlock); }
};

GPU_DEVICE bool find_owner(const LutOwners& o, lut::WOwner& owner) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kLutBlock + threadIdx.x;
  const auto [number, lane] = lut::split(thread, o.lanes);
  const auto [t, part] = lut::split(number, o.parts);
  owner.t = t;
  owner.first_cell = lut::split(o.units * part, o.parts).quotient * o.run;
  owner.last_cell = lut::split(o.units * (part + 1), o.parts).quotient * o.run;
  owner.lane = lane;
  owner.lanes = o.lanes;
  return owner.t < o.num_tables;
}

// Cells come in `units` runs that are never cut. Enough owners for a large GPU, each of which reads all
// indices of its table.
inline LutOwners share_rows(const LutTable& w, int64_t units) {
  constexpr int64_t kThreads = 1 << 18;
  LutOwners o{.num_tables = w.num_tables, .parts = 1, .units = units, .run = w.cells / units, .lanes = 32};
  while (o.lanes < w.longest && o.lanes < 1024) o.lanes *= 2;
  while (o.parts * 2 <= units && o.parts * 2 * o.lanes * w.num_tables <= kThreads) o.parts *= 2;
  return o;
}

}  // namespace trivium::TRIVIUM_GPU_NS
