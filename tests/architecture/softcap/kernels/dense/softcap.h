// Soft cap of logits.   y = cap * tanh(x / cap)                                              docs/layers.md#softcap
// Forward writes (=) y. Backward writes (=) or adds (+=) d_x = d_y * (1 - tanh(x / cap)^2).
// Source: Gemma Team, "Gemma 2", arXiv:2408.00118.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// All views have one shape (rows, cols) and one floating dtype.
struct SoftcapForwardArgs {
  RowsView x, y;
  double cap = 1.0;
};
struct SoftcapBackwardArgs {
  RowsView x, d_y;
  RowsDestination d_x;
  double cap = 1.0;
};

HEDDLE_CPU_KERNEL(softcap_forward, SoftcapForwardArgs);
HEDDLE_CPU_KERNEL(softcap_backward, SoftcapBackwardArgs);

}  // namespace heddle::kernels
