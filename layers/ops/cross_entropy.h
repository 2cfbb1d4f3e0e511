// Cross entropy of logits against class indices.                                     docs/layers.md#cross-entropy
//   loss = 1/count * sum over rows with target != ignore_index of
//          logsumexp(z) - (1 - s) z[target] - s mean(z) + c logsumexp(z)^2             s = label_smoothing, c = z_loss
// or the sum, or (reduction none) the loss of each row, of the shape of targets and 0 for ignored rows.
// logits: (..., classes) of any floating dtype, rows may be strided; targets: int32 of the other dimensions, dense;
// loss: in the accumulate type of logits; mean and sum are scalars, 0 when every row is ignored.
// Backward writes d_logits over the logits when nobody else holds them any more.
#pragma once

#include <string_view>

#include "core/autograd/tape.h"
#include "kernels/loss/cross_entropy.h"

namespace heddle {

using CrossEntropyOptions = kernels::CrossEntropyOptions;
using kernels::Reduction;

// Throws Error when shapes or dtypes do not fit, and on the CPU for a target that is no class.
Variable cross_entropy(Tape& tape, const Variable& logits, const Tensor& targets,
                       const CrossEntropyOptions& options = {});

// The checks of `layer` for what it has in common with cross_entropy(): targets, one for each row of the input x, which
// is called `name`, and the options.
void check_targets(std::string_view layer, const Tape& tape, const Tensor& targets, std::string_view name,
                   const Variable& x, const CrossEntropyOptions& options);

}  // namespace heddle
