// Lookup of rows of a table by index.   y[i, :] = weight[tokens[i], :]
// Forward writes (=) y. Backward writes (=) or adds (+=) d_weight; the rows d_y[i, :] of one token are added in the
// order of i. The CPU throws Error for an index outside [0, vocabulary); a GPU does not check, so callers pass valid
// indices.
#pragma once

#include <cstdint>

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
  RowsDestination d_weight;  // dtype of d_y or its accumulate type; overwrite also sets rows of absent tokens to 0
  VectorView workspace;      // int32, embedding_workspace(tokens.size, vocabulary) elements
  int64_t padding_idx = -1;  // the token whose row gets no gradient; -1: none
};

// Number of int32 elements that backward needs to sort the tokens, a function of the sizes alone. It covers the tokens
// and their positions, twice each, and the histograms of a radix sort: 256 counts for each tile of at least 2048
// tokens.
constexpr int64_t embedding_workspace(int64_t tokens, int64_t vocabulary) {
  return 4 * tokens + tokens / 8 + 2 * vocabulary + 65536;
}

HEDDLE_KERNEL(embedding_forward, EmbeddingForwardArgs);
HEDDLE_KERNEL(embedding_backward, EmbeddingBackwardArgs);

}  // namespace heddle::kernels
