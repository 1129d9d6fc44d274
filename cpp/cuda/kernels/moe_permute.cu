// Stable order of the tokens * top_k expert choices by expert: a counting sort in one block. Every warp
// counts its own run of choices, a scan over (expert, warp) gives each warp its first row, and the warps
// place their runs in order.
#include "cuda/block.cuh"
#include "cuda/gpu.cuh"
#include "cuda/kernels.h"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxExperts = kMaxThreads;  // a thread each in the scan

// The lanes whose `value` (below 2^bits) equals the calling lane's.
GPU_DEVICE LaneMask lanes_with_same(uint32_t value, int bits) {
  LaneMask same = full_mask();
  for (int b = 0; b < bits; ++b) {
    const bool set = value >> b & 1u;
    const LaneMask ones = ballot(set);
    same &= set ? ones : ~ones;
  }
  return same;
}

// Shared memory: int32 [warps, num_experts].
GPU_KERNEL(kMaxThreads) void moe_permute_kernel(MoePermuteArgs a, int expert_bits) {
  GPU_DYNAMIC_SHARED(int32_t, rows);
  const int num_experts = static_cast<int>(a.num_experts), thread = static_cast<int>(threadIdx.x);
  int32_t* next =
      rows + warp_id() * num_experts;  // first the count, then the next row of an expert's choices
  const int64_t choices = a.tokens * a.top_k;
  const int64_t run = (choices + blockDim.x - 1) / blockDim.x * kWarpSize;
  const int64_t begin = warp_id() * run, end = begin + run < choices ? begin + run : choices;

  for (int e = lane_id(); e < num_experts; e += kWarpSize) next[e] = 0;
  sync_warp();
  for (int64_t i = begin + lane_id(); i < end; i += kWarpSize) atomic_add(&next[a.experts[i]], 1);
  sync_block();

  int32_t count = 0;
  if (thread < num_experts)
    for (int w = 0; w < num_warps(); ++w) {
      int32_t& of_warp = rows[w * num_experts + thread];
      const int32_t before = count;
      count += of_warp;
      of_warp = before;
    }
  int32_t choices_in_all = 0;
  const int32_t last = block_inclusive_scan(count, choices_in_all), first = last - count;
  if (thread < num_experts) {
    for (int w = 0; w < num_warps(); ++w) rows[w * num_experts + thread] += first;
    a.offsets[thread] = first;
    if (thread + 1 == num_experts) a.offsets[num_experts] = last;
  }
  sync_block();

  for (int64_t base = begin; base < end; base += kWarpSize) {
    const int64_t i = base + lane_id();
    const bool valid = i < end;
    const int expert = valid ? a.experts[i] : num_experts;
    const LaneMask same = lanes_with_same(static_cast<uint32_t>(expert), expert_bits);
    const int rank = popcount(same & ((LaneMask{1} << lane_id()) - 1));
    const int32_t row = valid ? next[expert] + rank : 0;
    sync_warp();
    if (valid) {
      a.tokens_of_row[row] = static_cast<int32_t>(i / a.top_k);
      a.row_of_choice[i] = row;
      if (rank == 0) next[expert] += popcount(same);
    }
    sync_warp();
  }
}

}  // namespace

void moe_permute(Stream stream, const MoePermuteArgs& a) {
  TRIVIUM_CHECK(a.num_experts <= kMaxExperts, "moe_permute: ", a.num_experts, " experts, expected at most ",
                kMaxExperts);
  const int64_t work = a.tokens * a.top_k > a.num_experts ? a.tokens * a.top_k : a.num_experts;
  const int64_t threads = work < kMaxThreads ? 64 * ceil_div(work, 64) : kMaxThreads;
  int bits = 0;  // of the values 0 .. num_experts
  while (a.num_experts >> bits) ++bits;
  launch(stream,
         {.grid = {1},
          .block = static_cast<int>(threads),
          .shared_bytes = static_cast<int>(threads / 32 * a.num_experts * 4)},
         moe_permute_kernel, a, bits);
}

}  // namespace trivium::TRIVIUM_GPU_NS
