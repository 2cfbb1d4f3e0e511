// The product of a gated linear unit.   y = act(a) * b                                       docs/layers.md#glu
// a, b, y: (..., dim) of one floating dtype; rows of a and b may be strided, as the halves of one projection are.
// Source: Shazeer, "GLU variants improve transformer", arXiv:2002.05202.
#pragma once

#include "core/autograd/tape.h"
#include "layers/ops/activation.h"

namespace heddle {

// Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
Variable glu(Tape& tape, const Variable& a, const Variable& b, Activation act = Activation::silu);

// The same of the two halves of the last dimension of `both` (..., 2 * dim), without a copy: a is the first half.
Variable glu_of_halves(Tape& tape, const Variable& both, Activation act = Activation::silu);

}  // namespace heddle
