// Product-mode LUT layers: one thread an output element, a position, an embedding row; addresses are
// recomputed by each. An experimental mode, written for correctness.
#include "cuda/kernels.h"
#include "cuda/lut.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

template <bool fixed>
GPU_KERNEL(kLutBlock, 4)
void product_w_gradients_kernel(LutProductArgs a, LutOwners owners) {
  lut::WOwner owner;
  if (find_owner(owners, owner)) lut::product_w_gradients_item<fixed>(a, owner);
}

}  // namespace

void lut_product_forward(Stream stream, const LutProductArgs& a) {
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    launch_items<LutProductArgs, lut::product_forward_item<fixed>, 5>(
        stream, a, a.product.batch * a.product.length * a.table.outputs);
  });
}

void lut_product_backward(Stream stream, const LutProductArgs& a) {
  const LutProduct& p = a.product;
  dispatch_fixed(a.numerics, [&]<bool fixed>() {
    if (a.gx)
      launch_items<LutProductArgs, lut::product_x_gradients_item<fixed>, 2>(stream, a, p.batch * p.length);
    if (a.gpe)
      launch_items<LutProductArgs, lut::product_pe_gradients_item<fixed>, 2>(
          stream, a, p.unified ? a.pe_rows : a.pe_rows * p.num_tables);
    if (!a.target.out) return;
    const LutOwners owners = share_rows(a.table, a.table.cells);
    launch(stream, {.grid = {owners.blocks()}, .block = kLutBlock}, product_w_gradients_kernel<fixed>, a,
           owners);
  });
}

}  // namespace trivium::TRIVIUM_GPU_NS
