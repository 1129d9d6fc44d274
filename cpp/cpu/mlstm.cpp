// The gates of the mLSTM: the same on every CPU level.
#include <cmath>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace trivium::cpu {
namespace {

float log_sigmoid(float x) { return std::fmin(x, 0.0f) - std::log1p(std::exp(-std::fabs(x))); }

template <class T>
void gates_as(const MlstmGatesArgs& a) {
  parallel_for(a.rows, [&](int64_t row, int) {
    const T *i = static_cast<const T*>(a.i) + row * a.tokens,
            *f = static_cast<const T*>(a.f) + row * a.tokens;
    float *li = a.li + row * a.tokens, *lf = a.lf + row * a.tokens;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const float x = to_float(f[t]);
      li[t] = a.sigmoid_input ? log_sigmoid(to_float(i[t])) : to_float(i[t]);
      if (a.forget == MlstmForget::preactivation)
        lf[t] = std::isnan(x) ? x : log_sigmoid(x);
      else
        lf[t] = a.forget == MlstmForget::log || t % a.chunk == 0 ? x : x - to_float(f[t - 1]);
    }
  });
}

}  // namespace

void mlstm_gates(const MlstmGatesArgs& a) {
  if (a.dtype == Dtype::f32)
    gates_as<float>(a);
  else if (a.dtype == Dtype::bf16)
    gates_as<bf16>(a);
  else
    gates_as<f16>(a);
}

void soft_cap(const SoftCapArgs& a) {
  constexpr int64_t kRun = 4096;
  parallel_for((a.count + kRun - 1) / kRun, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRun < a.count ? (task + 1) * kRun : a.count;
    for (int64_t i = task * kRun; i < end; ++i) a.x[i] = a.cap * std::tanh(a.x[i] / a.cap);
  });
}

}  // namespace trivium::cpu
