// Linearized relative position encoding by cosine, of tokens on a grid.                 docs/layers.md#lrpe-cosine
//   a = act(x);  the first extra_tokens tokens: phi = 0;  token extra_tokens + s, s = (s_1 .. s_k) row-major over the
//   extents:  phi[s, h, j] = s_i * theta[h, j mod e],  i = floor(j / e) + 1          j = 0 .. D - 1
//   y = concat(a cos phi, a sin phi), (a, 0) for the extra tokens                    2 D features
// With one extent s_1 = s + offset. Forward writes (=) y. Backward writes (=) or adds (+=) d_x and d_theta. In float32,
// cos and sin are right to 1e-6 for every coordinate below 2^20; the phase is computed as in lrpe_rotate.h.
#pragma once

#include <cstdint>

#include "kernels/common/activation.h"
#include "kernels/common/dispatch.h"
#include "kernels/position/lrpe.h"

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

// y has 2 D features; theta has e columns, e * axes >= D.
using LrpeCosineForwardArgs = LrpeForwardArgs<LrpeCosineOptions>;
using LrpeCosineBackwardArgs = LrpeBackwardArgs<LrpeCosineOptions>;

HEDDLE_KERNEL(lrpe_cosine_forward, LrpeCosineForwardArgs);
HEDDLE_KERNEL(lrpe_cosine_backward, LrpeCosineBackwardArgs);

}  // namespace heddle::kernels
