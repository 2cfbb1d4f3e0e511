// Linearized relative position encoding by cosine, of tokens on a grid.                 docs/layers.md#lrpe-cosine
//   a = act(x);  the first extra_tokens tokens: phi = 0;  token extra_tokens + s, s = (s_1 .. s_k) row-major over the
//   extents:  phi[s, h, j] = s_i * theta[h, j mod e],  i = floor(j / e) + 1          j = 0 .. D - 1
//   y = concat(a cos phi, a sin phi)                                                 2 D features
// With one extent s_1 = s + offset. Forward writes (=) y. Backward writes or adds d_x and d_theta. cos and sin are
// right to 1e-6 (float32 output) for every coordinate below 2^20, by the phase that lrpe_rotate uses.
#pragma once

#include "kernels/activation.h"
#include "kernels/dispatch.h"
#include "kernels/lrpe.h"
#include "kernels/views.h"

namespace heddle::kernels {

struct LrpeCosineOptions {
  static constexpr int kMostAxes = 6;

  Activation act = Activation::none;
  Softmax softmax = Softmax::none;  // instead of act
  int64_t extra_tokens = 0;
  int64_t offset = 0;            // position of the first token of the grid; 0 with more than one axis
  int axes = 1;                  // k
  int64_t extents[kMostAxes]{};  // their product and extra_tokens are the length of x
};

// x and y have the same extents but for y's 2 D features, and the same dtype. theta: (theta_heads, e) row-major,
// theta_heads is 1 or heads, e * axes >= D; of x's dtype or float32 (float64 for float64 x). `maximum` and `sum`:
// float32 (float64) vectors of batch * heads * D, written by a forward with softmax over the sequence and read by its
// backward; else empty.
struct LrpeCosineForwardArgs {
  HeadsView x, y;
  RowsView theta;
  VectorView maximum, sum;
  LrpeCosineOptions options;
};

struct LrpeCosineBackwardArgs {
  HeadsView x;    // empty when act and softmax are none and d_theta is not wanted
  HeadsView d_y;  // 2 D features
  RowsView theta;
  VectorView maximum, sum;
  HeadsDestination d_x;
  RowsDestination d_theta;  // of theta's dtype, or float32 (float64)
  // (lrpe_theta_partials(length), theta_heads * e) of float32 (float64) when d_theta is wanted, else empty: workspace,
  // one row for each stretch of positions, added up in order.
  RowsView partials;
  // batch * heads * D numbers of float32 (float64) for softmax over the sequence, else empty: workspace.
  VectorView dots;
  LrpeCosineOptions options;
};

HEDDLE_KERNEL(lrpe_cosine_forward, LrpeCosineForwardArgs);
HEDDLE_KERNEL(lrpe_cosine_backward, LrpeCosineBackwardArgs);

}  // namespace heddle::kernels
