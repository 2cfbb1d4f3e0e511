// Rows of a table by token.   y[...] = weight[tokens[...]]                                docs/layers.md#embedding
// tokens: int32, any shape, dense; weight: (vocabulary, dim); y: (shape of tokens, dim). Backward adds the rows of one
// token in the order of their places: the same bits for any number of threads.
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

// Throws Error when shapes or dtypes do not fit and, on the CPU, for a token outside the vocabulary.
Variable embedding(Tape& tape, const Tensor& tokens, const Variable& weight);

}  // namespace heddle
