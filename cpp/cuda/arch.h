// Which GPUs the kernels in a build can run on. No vendor header: tested on any machine.
#pragma once

#include <string>
#include <string_view>

namespace trivium {

// `archs`: what nvcc was given, "80 86 89 90a 100a 120 ptx90". Machine code for x.y runs on x.z with z >= y;
// with the suffix a on x.y alone; PTX on everything later too.
bool cuda_arch_served(std::string_view archs, int major, int minor);
std::string cuda_arch_names(std::string_view archs);  // "sm_80 sm_86 ... and later than sm_90"

bool hip_arch_served(std::string_view archs, std::string_view arch);  // "gfx90a gfx942", exact names

// The name of a target as the kernel driver numbers it: 90010 -> gfx90a, 110501 -> gfx1151; "" for 0.
std::string hip_arch_name(int gfx_target_version);

}  // namespace trivium
