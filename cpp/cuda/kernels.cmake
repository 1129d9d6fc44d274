# The kernels of all GPU backends, relative to cpp/cuda; each backend compiles them in its own language.
set(TRIVIUM_GPU_KERNELS
  kernel_table.cu
  kernels/convert.cu
  kernels/embedding.cu
  kernels/rms_norm.cu
  kernels/swiglu.cu
  kernels/moe_route.cu
  kernels/moe_permute.cu
  kernels/moe_combine.cu
  kernels/mxfp4_decode.cu
  kernels/sample.cu
  kernels/linear.cu
  kernels/moe_gate_up.cu
  kernels/attention.cu
  kernels/rope.cu
  kernels/lut_rows.cu
  kernels/lut_sequence.cu
  kernels/lut_product.cu
  kernels/lut_staged.cu
  kernels/mlstm_backward.cu
  kernels/mlstm_backward_gates.cu
  kernels/mlstm_forward.cu
  kernels/mlstm_gates.cu
  kernels/mlstm_recurrent.cu
)
# Kernels that the emulator cannot run (wgmma, TMA, clusters, waiting for other blocks).
set(TRIVIUM_HARDWARE_ONLY_KERNELS)
