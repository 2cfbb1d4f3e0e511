// Division of groups of features by one number each, which is kept from being too small: docs/layers.md#guarded-divide
//   y = x / max(divisor, eps)
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

// x: (..., dim); divisor: (..., groups) of x's dtype, where groups divides dim: each divides dim / groups consecutive
// features; eps > 0. y has the shape of x. Where divisor <= eps, its gradient is 0. Saved for backward: y and divisor.
// Throws Error when shapes or dtypes do not fit.
Variable guarded_divide(Tape& tape, const Variable& x, const Variable& divisor, double eps);

}  // namespace heddle
