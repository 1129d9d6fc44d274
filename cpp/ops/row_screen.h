// Finding the largest product without computing all of them: a copy of a weight matrix in 6 or 8 bits
// bounds every row's product with x, and only rows whose bounds reach the largest lower bound are multiplied
// in full. The result is exact; most of a bf16 matrix's bytes are not read. On the CPU only.
#pragma once

#include "core/cancel.h"
#include "core/tensor.h"
#include "ops/args.h"
#include "ops/weight.h"

namespace trivium::ops {

// The copy; see RowScreenView for what is bounded.
struct RowScreen {
  Tensor codes;  // u8 [n, row bytes]
  Tensor step;   // f32 [n]
  Tensor error;  // f32 [n]
  Tensor norm;   // f32 [n]
  RowScreenView view() const;
  static int64_t bytes(const Shape& weight);  // of the copy of a [n, k] matrix
};

// Copies a dense bf16 matrix w [n, k] in host memory. Rows with NaN, infinities or only values below 1e-30
// (but not all zero) are bounded by nothing and always multiplied. InvalidArgument for other formats;
// Cancelled when `cancel` asks.
RowScreen make_row_screen(const Weight& w, const CancelToken* cancel = nullptr);

// The most rows of x for which the screen is worth its work: more of them make the product a matter of
// arithmetic, not of memory.
inline constexpr int64_t kScreenedRows = 4;

// As linear(x, w) without bias, but elements that are surely below their row's maximum are -inf: the first
// maximum of a row, its bits and a NaN are where linear has them. x [m, k] f32 or bf16, y f32 [m, n].
void linear_maximum(const Tensor& x, const Weight& w, const RowScreen& screen, Tensor& y);

}  // namespace trivium::ops
