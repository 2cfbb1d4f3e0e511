// Matrix product and the sum over rows.
//   gemm         c (=|+=) op(a) op(b) + bias            op(x) is x or its transpose
//   column_sum   sums (=|+=) sum over rows of x         the gradient of a bias
// The mode of the destination says whether it is overwritten (=) or accumulated into (+=). The order of summation
// depends on the shapes alone.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

enum class Transpose : uint8_t { no, yes };

// op(a) is (m, k), op(b) is (k, n) and c is (m, n); m, n or k may be 0. a and b have one dtype, and c has that dtype or
// its accumulate type. bias is (n) of the dtype of a and is added to every row, or it is empty.
struct GemmArgs {
  RowsView a, b;
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  VectorView bias;
  RowsDestination c;
};

// x is (rows, cols), sums is (cols).
struct ColumnSumArgs {
  RowsView x;
  VectorDestination sums;  // dtype of x or its accumulate type
};

// m, n and k; a multiplication and an addition for each of their products.
inline KernelWork work_of(const GemmArgs& args) {
  const int64_t m = args.c.view.rows, n = args.c.view.cols;
  const int64_t k = args.transpose_a == Transpose::yes ? args.a.rows : args.a.cols;
  return {.sizes = {m, n, k},
          .operations = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k)};
}

HEDDLE_KERNEL(gemm, GemmArgs);
HEDDLE_KERNEL(column_sum, ColumnSumArgs);

}  // namespace heddle::kernels
