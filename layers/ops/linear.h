// Matrix product with a weight.   y = x weight^T + bias                                     docs/layers.md#linear
// x: (..., in), rows may be strided; weight: (out, in); bias: (out); y: (..., out); all of one floating dtype.
// Backward adds into the gradients of weight and bias inside the product, without a temporary.
#pragma once

#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

// bias may be undefined. Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
Variable linear(Tape& tape, const Variable& x, const Variable& weight, const Variable& bias = {});

// y_i = x weight_i^T for several weights. The results are parts of one tensor, so a part that is saved for a backward
// keeps all of them. Weights that lie one behind the other in memory, as parameters do that were added one after the
// other, share one product: x is read once, and their gradients are written by one product, too.
std::vector<Variable> linear(Tape& tape, const Variable& x, const std::vector<Variable>& weights);

}  // namespace heddle
