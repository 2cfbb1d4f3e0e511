// Rows of a table by token.   y[...] = weight[tokens[...]]                                docs/layers.md#embedding
// tokens: int32, any shape, dense; weight: (vocabulary, dim); y: (shape of tokens, dim). Backward adds the rows of one
// token in the order of their places: the same bits for any number of threads.
#pragma once

#include <cstdint>
#include <optional>

#include "core/autograd/tape.h"

namespace heddle {

struct EmbeddingOptions {
  std::optional<int64_t> padding_idx;  // the token whose row gets no gradient: its places count for nothing
};

// Throws Error when shapes or dtypes do not fit, and on the CPU for a token outside the vocabulary.
Variable embedding(Tape& tape, const Tensor& tokens, const Variable& weight, const EmbeddingOptions& options = {});

}  // namespace heddle
