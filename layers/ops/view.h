// Views of values on the tape: no memory, no node. A consumer of a view writes the gradient straight into its part of
// the gradient of the whole, so a fused projection (query, key and value; the two halves of a gated unit) needs no
// concatenation in backward.
#pragma once

#include <cstdint>
#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

// One extent may be -1: it is what the others leave; none of them may be 0 then. Throws Error when that needs a copy.
inline Variable reshape(Tape& tape, const Variable& x, const Shape& shape) {
  return tape.view(x, [shape](const Tensor& whole) { return whole.reshape(shape); });
}

// The last dimension in consecutive parts of these sizes, which must add up to it.
inline std::vector<Variable> split_last(Tape& tape, const Variable& x, const std::vector<int64_t>& sizes) {
  return tape.split(x, -1, sizes);
}

}  // namespace heddle
