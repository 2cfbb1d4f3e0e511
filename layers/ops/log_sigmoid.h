// The logarithm of a sigmoid.                                                        docs/layers.md#log-sigmoid
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

// y = log(sigmoid(x)) / divisor, of x's shape (..., dim) and of its accumulate type. divisor > 0. Saved for backward:
// x. Throws Error when x is not rows of real numbers at even distances.
Variable log_sigmoid(Tape& tape, const Variable& x, double divisor = 1.0);

}  // namespace heddle
