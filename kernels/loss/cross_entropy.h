// Mean cross entropy of logits against class indices.                                docs/layers.md#cross-entropy
//   loss = 1/count * sum over rows with target != ignore_index of
//          logsumexp(z) - (1 - s) z[target] - s mean(z)                              s = label_smoothing
// Forward writes (=) loss, log_sum_exp and count. Backward writes (=) or adds (+=) d_logits.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

struct CrossEntropyOptions {
  int32_t ignore_index = -100;
  double label_smoothing = 0.0;
};

// The accumulate type is float64 for float64 logits and float32 otherwise.
struct CrossEntropyForwardArgs {
  RowsView logits;         // (rows, classes)
  VectorView targets;      // (rows) int32
  VectorView loss;         // (1) accumulate type; 0 when every row is ignored
  VectorView log_sum_exp;  // (rows) accumulate type
  VectorView row_losses;   // (rows) accumulate type: workspace, the loss of each row
  VectorView count;        // (1) accumulate type: the number of rows that are not ignored
  CrossEntropyOptions options;
};

struct CrossEntropyBackwardArgs {
  RowsView logits;
  VectorView targets;
  VectorView log_sum_exp, count;  // as forward wrote them
  VectorView d_loss;              // (1) accumulate type
  RowsDestination d_logits;       // may be the same memory as logits
  CrossEntropyOptions options;
};

HEDDLE_KERNEL(cross_entropy_forward, CrossEntropyForwardArgs);
HEDDLE_KERNEL(cross_entropy_backward, CrossEntropyBackwardArgs);

}  // namespace heddle::kernels
