// Linearized relative position encoding by rotation.                                   docs/layers.md#lrpe-rotate
//   a = act(x);  phi[n, h, k] = (n + offset) * theta[h, k], 0 for k >= E
//   half:         y[k]      = a[k] cos phi - a[k + D/2] sin phi;   y[k + D/2] = a[k] sin phi + a[k + D/2] cos phi
//   interleaved:  the same with the pair (2k, 2k + 1)                               k = 0 .. D/2 - 1
// Forward writes (=) y. Backward writes (=) or adds (+=) d_x and d_theta. In float32, cos and sin are right to 1e-6 for
// every position below 2^20 and every finite theta: the phase (n + offset) * (theta / 2 pi) is computed in 64-bit fixed
// point, which wraps exactly.
#pragma once

#include <cstdint>

#include "kernels/common/activation.h"
#include "kernels/common/dispatch.h"
#include "kernels/position/lrpe.h"

namespace heddle::kernels {

enum class Pairing : uint8_t { half, interleaved };

struct LrpeRotateOptions {
  Activation act = Activation::none;
  Softmax softmax = Softmax::none;  // instead of act
  Pairing pairing = Pairing::half;
  int64_t offset = 0;  // position of the first token
};

// y has the features of x, an even number; theta has E <= dim / 2 columns.
using LrpeRotateForwardArgs = LrpeForwardArgs<LrpeRotateOptions>;
using LrpeRotateBackwardArgs = LrpeBackwardArgs<LrpeRotateOptions>;

HEDDLE_KERNEL(lrpe_rotate_forward, LrpeRotateForwardArgs);
HEDDLE_KERNEL(lrpe_rotate_backward, LrpeRotateBackwardArgs);

}  // namespace heddle::kernels
