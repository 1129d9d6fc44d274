// The kernels that exist once per CPU level, and the choice among them at run time.
#pragma once

#include <string_view>

#include "ops/args.h"
#include "ops/lut_args.h"
#include "ops/mlstm_args.h"

namespace trivium::cpu {

struct MlstmKernels {
  void (*forward)(const MlstmForwardArgs&);
  void (*backward)(const MlstmBackwardArgs&);
  void (*recurrent)(const MlstmRecurrentArgs&);
  void (*segments)(const MlstmSegmentsArgs&);
  void (*head_norm)(const HeadNormArgs&);
  void (*silu_mul)(const SiluMulArgs&);
};

struct LevelKernels {
  const char* name;  // "scalar", "avx2", "avx512-bf16"
  bool bf16_dot;     // a bf16 dot instruction: bfloat16 is the faster precision
  int screen_bits;   // of linear_maximum's copies, RowScreenView
  void (*linear)(const LinearArgs&);
  void (*linear_maximum)(const LinearMaximumArgs&);
  void (*moe_gate_up)(const MoeGateUpArgs&);
  void (*moe_down)(const MoeDownArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*attention)(const AttentionArgs&);
  void (*swiglu)(const SwigluArgs&);
  void (*lut_check_detectors)(const LutDetectArgs&);
  void (*lut_fill_outputs)(const LutForwardArgs&);
  void (*lut_gather_x_gradients)(const LutXGradientArgs&);
  void (*lut_gather_w_gradients)(const LutWGradientArgs&);
  void (*lut_fill_outputs_for_sequence)(const LutSequenceForwardArgs&);
  void (*lut_gather_x_gradients_for_sequence)(const LutSequenceXGradientArgs&);
  void (*lut_gather_w_gradients_for_sequence)(const LutSequenceWGradientArgs&);
  void (*lut_decode)(const LutDecodeArgs&);
  void (*lut_mark_pairs)(const LutMarkRowsArgs&);
  const MlstmKernels& (*mlstm)();
};

namespace scalar {
const LevelKernels& level_kernels();
const MlstmKernels& mlstm_kernels();
}  // namespace scalar
namespace avx2 {
const LevelKernels& level_kernels();
const MlstmKernels& mlstm_kernels();
}  // namespace avx2
namespace avx512 {
const LevelKernels& level_kernels();
const MlstmKernels& mlstm_kernels();
}  // namespace avx512

// The best level this CPU runs, or what TRIVIUM_CPU_LEVEL names (DeviceError when it cannot run here).
const LevelKernels& current_level();

}  // namespace trivium::cpu
