// Softmax of groups of features: positive features that add up to 1.                  docs/layers.md#softmax
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"

namespace heddle {

// y = exp(x) / (sum of exp(x) over the group), of the shape and dtype of x (..., dim), for each of `groups` groups of
// dim / groups consecutive features. Saved for backward: x. Throws Error when x is not rows of real numbers at even
// distances, or groups does not divide dim.
Variable softmax(Tape& tape, const Variable& x, int64_t groups = 1);

}  // namespace heddle
