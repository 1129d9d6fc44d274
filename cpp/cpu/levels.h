// The kernels that exist once per CPU level, and the choice among them at run time.
#pragma once

#include <string_view>

#include "ops/args.h"

namespace trivium::cpu {

struct LevelKernels {
  const char* name;  // "scalar", "avx2", "avx512-bf16"
  bool bf16_dot;     // a bf16 dot instruction: bfloat16 is the faster precision
  void (*linear)(const LinearArgs&);
  void (*moe_gate_up)(const MoeGateUpArgs&);
  void (*moe_down)(const MoeDownArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*attention)(const AttentionArgs&);
  void (*swiglu)(const SwigluArgs&);
};

namespace scalar {
const LevelKernels& level_kernels();
}
namespace avx2 {
const LevelKernels& level_kernels();
}
namespace avx512 {
const LevelKernels& level_kernels();
}

// The best level this CPU runs, or what TRIVIUM_CPU_LEVEL names (DeviceError when it cannot run here).
const LevelKernels& current_level();

}  // namespace trivium::cpu
