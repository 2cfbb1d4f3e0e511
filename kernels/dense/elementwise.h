// Elementwise operations on matrices (rows, cols) with row strides.
//   activation   y = act(x)                     backward: d_x (=|+=) d_y * act'(x)
//   glu          y = act(a) * b                 backward: d_a (=|+=) d_y * b * act'(a);  d_b (=|+=) d_y * act(a)
//   accumulate   to (=|+=) scale * from         the dtypes may differ, so this also converts between dtypes
//   scale        to (=|+=) from * factor / divisor          by numbers that lie in memory
// Forward writes (=) y. Within one call all views have one shape and, except in the last two, one floating dtype.
#pragma once

#include "kernels/common/activation.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct ActivationForwardArgs {
  RowsView x, y;
  Activation act = Activation::none;
};
struct ActivationBackwardArgs {
  RowsView x, d_y;
  RowsDestination d_x;  // may be the same memory as d_y
  Activation act = Activation::none;
};

struct GluForwardArgs {
  RowsView a, b, y;
  Activation act = Activation::silu;
};
struct GluBackwardArgs {
  RowsView a, b, d_y;
  RowsDestination d_a, d_b;  // may be the same memory as d_y; an empty one is not computed
  Activation act = Activation::silu;
};

struct AccumulateArgs {
  RowsView from;
  RowsDestination to;
  double scale = 1.0;
};

// A divisor of 0 makes the result 0: gradients of the mean over no rows.
struct ScaleArgs {
  RowsView from;               // of the accumulate type of `to`
  RowsDestination to;          // may be the same memory as `from`
  VectorView factor, divisor;  // (1) accumulate type; no divisor: 1
};

HEDDLE_KERNEL(activation_forward, ActivationForwardArgs);
HEDDLE_KERNEL(activation_backward, ActivationBackwardArgs);
HEDDLE_KERNEL(glu_forward, GluForwardArgs);
HEDDLE_KERNEL(glu_backward, GluBackwardArgs);
HEDDLE_KERNEL(accumulate, AccumulateArgs);
HEDDLE_KERNEL(scale, ScaleArgs);

}  // namespace heddle::kernels
