// Division of groups of features by one number each, which is kept from being too small.
//   g = max(divisor, eps);  y = x / g
//   backward: d_x (=|+=) d_y / g;  d_divisor (=|+=) -(sum of d_y y over the group) / g where divisor >= eps, else 0
// x, y, d_y, d_x: (rows, cols); divisor, d_divisor: (rows, groups), and groups divides cols; all of one floating dtype.
// Forward writes (=) y. A divisor that is NaN makes its group NaN.
#pragma once

#include <limits>

#include "kernels/common/dispatch.h"
#include "kernels/common/types.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// What a group is divided by, for both devices; A is the type of arithmetic. An eps that is too small for A stays what
// it is: such a divisor is compared and divided by in double.
template <class A>
struct GuardedDivisor {
  static constexpr double kSmallest = std::numeric_limits<A>::min();  // normal number
  double exact;
  A rounded;
  bool fits;      // whether `rounded` has the digits of `exact`
  bool is_below;  // the divisor that was given is below eps
  HEDDLE_HOST_DEVICE_INLINE GuardedDivisor(A divisor, double eps) {
    const double least = eps < kSmallest ? eps : static_cast<double>(static_cast<A>(eps));
    const double given = static_cast<double>(divisor);
    exact = given <= least ? least : given;
    rounded = static_cast<A>(exact);
    fits = !(exact < kSmallest);
    is_below = given < least;
  }
  HEDDLE_HOST_DEVICE_INLINE A divide(A number) const {
    return fits ? number / rounded : static_cast<A>(static_cast<double>(number) / exact);
  }
};

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
