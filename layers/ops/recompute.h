// A part of a model whose inner values are not kept for backward but computed again there. docs/memory.md#recomputation
// Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", arXiv:1604.06174.
#pragma once

#include <functional>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"

namespace heddle {

// Outputs of a function of the inputs, in order; inputs may be undefined. It is called in forward, and once more in
// backward, on another tape: it must give the same bits at both times and change nothing else.
using RecomputedFunction = std::function<std::vector<Variable>(Tape& tape, const std::vector<Variable>& inputs)>;

// The outputs of `function`. Only the inputs are kept for backward. `parameters` are those that the function uses; they
// get the same gradients, bit for bit, as without recomputation, and so do inputs that nothing else uses. Where there
// is nothing to differentiate, on a tape that does not record or with constants alone, the function is called as it is.
std::vector<Variable> recompute(Tape& tape, const std::vector<Variable>& inputs,
                                const std::vector<Parameter*>& parameters, RecomputedFunction function);

}  // namespace heddle
