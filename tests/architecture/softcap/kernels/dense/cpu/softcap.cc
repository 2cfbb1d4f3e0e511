// Soft cap on the CPU, row by row.
#include "kernels/dense/softcap.h"

#include <cmath>
#include <cstdint>

#include "kernels/common/cpu/types.h"

namespace heddle::kernels::cpu {

void softcap_forward(Context&, const SoftcapForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const A cap = static_cast<A>(args.cap);
    for (int64_t i = 0; i < args.x.rows; ++i) {
      for (int64_t j = 0; j < args.x.cols; ++j) {
        const A x = static_cast<A>(row<T>(args.x, i)[j]);
        store(row<T>(args.y, i) + j, cap * std::tanh(x / cap), GradientMode::overwrite);
      }
    }
  });
}

void softcap_backward(Context&, const SoftcapBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const A cap = static_cast<A>(args.cap);
    for (int64_t i = 0; i < args.x.rows; ++i) {
      for (int64_t j = 0; j < args.x.cols; ++j) {
        const A tanh = std::tanh(static_cast<A>(row<T>(args.x, i)[j]) / cap);
        const A d_y = static_cast<A>(row<T>(args.d_y, i)[j]);
        store(row<T>(args.d_x.view, i) + j, d_y * (A(1) - tanh * tanh), args.d_x.mode);
      }
    }
  });
}

}  // namespace heddle::kernels::cpu
