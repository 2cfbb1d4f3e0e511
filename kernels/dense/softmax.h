// Softmax of groups of features.
//   y = exp(x) / (sum of exp(x))        backward: d_x (=|+=) y (d_y - sum of y d_y)
// Sums are taken over each of `groups` groups of cols / groups consecutive features of a row, relative to the largest
// x. Forward writes (=) y; backward computes y again from x. All views have one shape and one floating dtype. A group
// is NaN when it holds NaN or +infinity, or nothing above -infinity.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct SoftmaxForwardArgs {
  RowsView x, y;
  int64_t groups = 1;
};
struct SoftmaxBackwardArgs {
  RowsView x, d_y;
  RowsDestination d_x;  // may be the same memory as d_y
  int64_t groups = 1;
};

HEDDLE_KERNEL(softmax_forward, SoftmaxForwardArgs);
HEDDLE_KERNEL(softmax_backward, SoftmaxBackwardArgs);

}  // namespace heddle::kernels
