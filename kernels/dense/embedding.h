// Rows of a table by index.   y[i, :] = weight[tokens[i], :]
// Forward writes (=) y. Backward writes or adds d_weight: the rows d_y[i, :] of one token are added in the order of i.
// On the CPU an index outside [0, vocabulary) is an Error; the layer's callers are expected to pass valid ones.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct EmbeddingForwardArgs {
  VectorView tokens;  // int32
  RowsView weight;    // (vocabulary, dim)
  RowsView y;         // (tokens.size, dim)
};

struct EmbeddingBackwardArgs {
  VectorView tokens;
  RowsView d_y;
  RowsDestination d_weight;  // dtype of d_y or its accumulate type; overwrite also zeroes rows of absent tokens
  VectorView workspace;      // int32, embedding_workspace(tokens.size, vocabulary) numbers
};

// int32 numbers that backward needs to sort the tokens: a function of the sizes alone. Tokens and their places twice,
// and what a radix sort keeps for each of its tiles of at least 2048 tokens (256 numbers) and for itself.
constexpr int64_t embedding_workspace(int64_t tokens, int64_t vocabulary) {
  return 4 * tokens + tokens / 8 + 2 * vocabulary + 65536;
}

HEDDLE_KERNEL(embedding_forward, EmbeddingForwardArgs);
HEDDLE_KERNEL(embedding_backward, EmbeddingBackwardArgs);

}  // namespace heddle::kernels
