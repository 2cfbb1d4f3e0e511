// Cross entropy of logits against class indices.                                     docs/layers.md#cross-entropy
//   loss = 1/count * sum over rows with target != ignore_index of
//          logsumexp(z) - (1 - s) z[target] - s mean(z) + c logsumexp(z)^2           s = label_smoothing, c = z_loss
// or the sum, or the loss of each row. Forward writes (=) loss, maxima, rests and count, and the gradients of the rows'
// losses where they are wanted at once. Backward writes (=) or adds (+=) d_logits. The target's gradient is minus the
// sum of the others', computed as such, so neither pass loses digits to a common offset of the logits or to a target
// far ahead of, or far behind, the other classes.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// What becomes of the losses of the rows. none: they are the result.
enum class Reduction : uint8_t { mean, sum, none };

struct CrossEntropyOptions {
  int32_t ignore_index = -100;
  double label_smoothing = 0.0;
  Reduction reduction = Reduction::mean;
  double z_loss = 0.0;
};

// The accumulate type is float64 for float64 logits and float32 otherwise.
struct CrossEntropyForwardArgs {
  RowsView logits;        // (rows, classes)
  VectorView targets;     // (rows) int32
  VectorView loss;        // (1) accumulate type; 0 when every row is ignored; empty without a reduction
  VectorView maxima;      // (rows) accumulate type: max(z); this and the next are 0 for ignored rows
  VectorView rests;       // (rows) accumulate type: the sum of exp(z - max(z)) over all classes but one maximal one
  VectorView row_losses;  // (rows) accumulate type: the loss of each row, 0 for ignored ones; else a workspace
  VectorView count;       // (1) accumulate type: the number of rows that are not ignored; empty without a reduction
  RowsView d_logits;      // optional: the gradient of each row's own loss; may be the same memory as logits
  CrossEntropyOptions options;
};

// The sum or the mean of the losses of rows, as cross_entropy_forward() reduces them. Writes (=) loss and count.
struct ReduceLossesArgs {
  VectorView row_losses, targets;
  VectorView loss, count;
  CrossEntropyOptions options;
};

struct CrossEntropyBackwardArgs {
  RowsView logits;
  VectorView targets;
  VectorView maxima, rests, count;  // as forward wrote them; count is needed for the mean alone
  VectorView d_loss;                // (1) accumulate type, without a reduction (rows); empty: 1 for each loss
  RowsDestination d_logits;         // may be the same memory as logits
  CrossEntropyOptions options;
};

HEDDLE_KERNEL(cross_entropy_forward, CrossEntropyForwardArgs);
HEDDLE_KERNEL(cross_entropy_backward, CrossEntropyBackwardArgs);
HEDDLE_KERNEL(reduce_losses, ReduceLossesArgs);

}  // namespace heddle::kernels
