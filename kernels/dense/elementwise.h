// Elementwise work on (rows, cols) with row strides.
//   activation   y = act(x)                     backward: d_x (=|+=) d_y * act'(x)
//   glu          y = act(a) * b                 backward: d_a (=|+=) d_y * b * act'(a);  d_b (=|+=) d_y * act(a)
//   add          y = a + b
//   accumulate   to (=|+=) scale * from         dtypes may differ: also the conversion between dtypes
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
  RowsDestination d_x;  // may be the memory of d_y
  Activation act = Activation::none;
};

struct GluForwardArgs {
  RowsView a, b, y;
  Activation act = Activation::silu;
};
struct GluBackwardArgs {
  RowsView a, b, d_y;
  RowsDestination d_a, d_b;
  Activation act = Activation::silu;
};

struct AddArgs {
  RowsView a, b, y;
};

struct AccumulateArgs {
  RowsView from;
  RowsDestination to;
  double scale = 1.0;
};

HEDDLE_KERNEL(activation_forward, ActivationForwardArgs);
HEDDLE_KERNEL(activation_backward, ActivationBackwardArgs);
HEDDLE_KERNEL(glu_forward, GluForwardArgs);
HEDDLE_KERNEL(glu_backward, GluBackwardArgs);
HEDDLE_KERNEL(add, AddArgs);
HEDDLE_KERNEL(accumulate, AccumulateArgs);

}  // namespace heddle::kernels
