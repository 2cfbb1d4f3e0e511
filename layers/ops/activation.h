// Elementwise activation.   y = act(x)                                                      docs/layers.md#activation
// relu'(0) = 0. Backward writes over the incoming gradient where nobody else holds it.
#pragma once

#include <string_view>

#include "core/autograd/tape.h"
#include "kernels/common/activation.h"

namespace heddle {

using kernels::Activation;

// x: (..., dim), rows may be strided. With Activation::none the result is x itself. Throws Error on a GPU for an
// activation that it has no kernel for.
Variable activation(Tape& tape, const Variable& x, Activation act);

// Throws the Error of `layer` for an activation that the device of `context` has no kernel for.
void check_activation(const Context& context, std::string_view layer, Activation act);

}  // namespace heddle
