// Division of groups of features by one number each, which is kept from being too small.
//   g = max(divisor, eps);  y = x / g
//   backward: d_x (=|+=) d_y / g;  d_divisor (=|+=) -(sum of d_y y over the group) / g where divisor >= eps, else 0
// x, y, d_y, d_x: (rows, cols); divisor, d_divisor: (rows, groups), and groups divides cols; all of one floating dtype.
// Forward writes (=) y. A divisor that is NaN makes its group NaN.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct GuardedDivideForwardArgs {
  RowsView x, divisor, y;
  double eps = 0.0;
};
struct GuardedDivideBackwardArgs {
  RowsView y, divisor, d_y;
  RowsDestination d_x;        // may be the same memory as d_y; empty: not wanted
  RowsDestination d_divisor;  // empty: not wanted
  double eps = 0.0;
};

HEDDLE_KERNEL(guarded_divide_forward, GuardedDivideForwardArgs);
HEDDLE_KERNEL(guarded_divide_backward, GuardedDivideBackwardArgs);

}  // namespace heddle::kernels
