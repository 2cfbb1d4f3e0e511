// Soft cap of logits.   y = cap * tanh(x / cap)                                              docs/layers.md#softcap
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

// x, y: (..., dim) of one floating dtype; rows of x may be strided. cap > 0. Throws Error when they are not so.
Variable softcap(Tape& tape, const Variable& x, double cap);

}  // namespace heddle
