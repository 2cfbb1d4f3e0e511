// Mean cross entropy of logits against class indices.                                docs/layers.md#cross-entropy
//   loss = 1/count * sum over rows with target != ignore_index of
//          logsumexp(z) - (1 - s) z[target] - s mean(z)                                s = label_smoothing
// logits: (..., classes) of any floating dtype, rows may be strided; targets: int32 of the other dimensions, dense;
// loss: a scalar in the accumulate type of logits, 0 when every row is ignored.
// Backward writes d_logits over the logits when nobody else holds them any more.
#pragma once

#include "core/autograd/tape.h"
#include "kernels/loss/cross_entropy.h"

namespace heddle {

using CrossEntropyOptions = kernels::CrossEntropyOptions;

// Throws Error when shapes or dtypes do not fit and, on the CPU, for a target that is no class.
Variable cross_entropy(Tape& tape, const Variable& logits, const Tensor& targets,
                       const CrossEntropyOptions& options = {});

}  // namespace heddle
