// Elementwise activation.   y = act(x)                                                      docs/layers.md#activation
// relu'(0) = 0. Backward writes over the incoming gradient where nobody else holds it.
#pragma once

#include "core/autograd/tape.h"
#include "kernels/common/activation.h"

namespace heddle {

using kernels::Activation;

// x: (..., dim), rows may be strided. With Activation::none the result is x itself.
Variable activation(Tape& tape, const Variable& x, Activation act);

}  // namespace heddle
