// Linearized relative position encoding by rotation.                                   docs/layers.md#lrpe-rotate
//   a = act(x);  phi[n, h, k] = (n + offset) * theta[h, k], 0 for k >= E
//   half:         y[k]      = a[k] cos phi - a[k + D/2] sin phi;   y[k + D/2] = a[k] sin phi + a[k + D/2] cos phi
//   interleaved:  the same with the pair (2k, 2k + 1)                               k = 0 .. D/2 - 1
// Forward writes (=) y. Backward writes or adds d_x and d_theta. cos and sin are right to 1e-6 (float32 output) for
// every position below 2^20: the phase is (n + offset) * (theta / 2 pi) in 64-bit fixed point, which wraps exactly.
#pragma once

#include "kernels/activation.h"
#include "kernels/dispatch.h"
#include "kernels/lrpe.h"
#include "kernels/views.h"

namespace heddle::kernels {

enum class Pairing : uint8_t { half, interleaved };

struct LrpeRotateOptions {
  Activation act = Activation::none;
  Softmax softmax = Softmax::none;  // instead of act
  Pairing pairing = Pairing::half;
  int64_t offset = 0;  // position of the first token
};

// x and y have the same extents and dtype, dim even. theta: (theta_heads, E) row-major, theta_heads is 1 or heads,
// E <= dim / 2; of x's dtype or float32 (float64 for float64 x). `maximum` and `sum`: float32 (float64) vectors of
// batch * heads * dim, written by a forward with softmax over the sequence and read by its backward; else empty.
struct LrpeRotateForwardArgs {
  HeadsView x, y;
  RowsView theta;
  VectorView maximum, sum;
  LrpeRotateOptions options;
};

struct LrpeRotateBackwardArgs {
  HeadsView x;  // empty when act and softmax are none and d_theta is not wanted
  HeadsView d_y;
  RowsView theta;
  VectorView maximum, sum;
  HeadsDestination d_x;
  RowsDestination d_theta;  // of theta's dtype, or float32 (float64)
  // (lrpe_theta_partials(length), theta_heads * E) of float32 (float64) when d_theta is wanted, else empty: workspace,
  // one row for each stretch of positions, added up in order.
  RowsView partials;
  // batch * heads * dim numbers of float32 (float64) for softmax over the sequence, else empty: workspace.
  VectorView dots;
  LrpeRotateOptions options;
};

HEDDLE_KERNEL(lrpe_rotate_forward, LrpeRotateForwardArgs);
HEDDLE_KERNEL(lrpe_rotate_backward, LrpeRotateBackwardArgs);

}  // namespace heddle::kernels
