// The logarithm of a sigmoid, which a gate that depends on the data gives as the log decay of a state.
//   y = log(1 / (1 + exp(-x))) / divisor        backward: d_x (=|+=) d_y / (1 + exp(x)) / divisor
// Forward writes (=) y. x and d_x have one floating dtype, y and d_y its accumulate type: a decay is never kept in less
// than float32. Digits are kept at both ends: y is x / divisor for x far below 0, and -exp(-x) / divisor far above.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct LogSigmoidForwardArgs {
  RowsView x, y;
  double divisor = 1.0;
};
struct LogSigmoidBackwardArgs {
  RowsView x, d_y;
  RowsDestination d_x;
  double divisor = 1.0;
};

HEDDLE_KERNEL(log_sigmoid_forward, LogSigmoidForwardArgs);
HEDDLE_KERNEL(log_sigmoid_backward, LogSigmoidBackwardArgs);

}  // namespace heddle::kernels
