// Copies between tensors of any floating dtypes.
#pragma once

#include "core/runtime/context.h"
#include "core/tensor/tensor.h"
#include "kernels/common/views.h"
#include "kernels/dense/elementwise.h"

namespace heddle {

// to = factor * from, element by element, rounded once to the dtype of `to`. Both have one shape.
inline void copy_scaled(Context& context, const Tensor& from, const Tensor& to, double factor = 1.0) {
  kernels::accumulate(
      context,
      {.from = kernels::rows_view(from), .to = {kernels::rows_view(to), GradientMode::overwrite}, .scale = factor});
}

}  // namespace heddle
