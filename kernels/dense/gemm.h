// Matrix product.   c (=|+=) op(a) op(b) + bias
// Writes (GradientMode::overwrite) or adds to (add) c. The order of summation depends on the shapes alone.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

enum class Transpose : uint8_t { no, yes };

// op(a): (m, k), op(b): (k, n), c: (m, n). a and b have one dtype; c has that dtype or its accumulate type.
// bias: (n), added to every row, or empty; dtype of a. m, n or k may be 0.
struct GemmArgs {
  RowsView a, b;
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  VectorView bias;
  RowsDestination c;
};

// sums (cols) (=|+=) sum over rows of x: the gradient of a bias. In a fixed order.
struct ColumnSumArgs {
  RowsView x;
  VectorDestination sums;  // dtype of x or its accumulate type
};

HEDDLE_KERNEL(gemm, GemmArgs);
HEDDLE_KERNEL(column_sum, ColumnSumArgs);

}  // namespace heddle::kernels
