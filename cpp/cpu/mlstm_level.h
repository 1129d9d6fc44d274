// The mLSTM kernels of one CPU level, in a file of their own because they compile slowly.
#pragma once

#include "cpu/mlstm_backward.h"
#include "cpu/mlstm_forward.h"
#include "cpu/mlstm_recurrent.h"
#include "cpu/mlstm_segments.h"

namespace trivium::cpu::TRIVIUM_CPU_NS {

const MlstmKernels& mlstm_kernels() {
  static constexpr MlstmKernels kTable{mlstm_forward,  mlstm_backward, mlstm_recurrent,
                                       mlstm_segments, head_norm,      silu_mul};
  return kTable;
}

}  // namespace trivium::cpu::TRIVIUM_CPU_NS
