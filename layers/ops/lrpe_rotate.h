// Linearized relative position encoding by rotation.                                    docs/layers.md#lrpe-rotate
//   a = act(x);  phi[n, h, k] = (n + offset) * theta[h, k];  the pair (k, k + D/2) of a turned by phi
// Source: Qin et al., "Linearized relative positional encoding", arXiv:2307.09270; Su et al., "RoFormer",
// arXiv:2104.09864.
#pragma once

#include "core/autograd/tape.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle {

using kernels::Activation;
using kernels::Layout;
using kernels::Pairing;
using kernels::Softmax;

struct LrpeRotateOptions : kernels::LrpeRotateOptions {
  Layout layout = Layout::bnhd;
  // int32, one element on the device of x: the tokens of a text that come before x, by which all positions are greater.
  // It is read when the operator runs, so that what a graph repeats can go on in the text. Inference only.
  Tensor tokens_before = {};
};

// x: (B, N, H, D), (B, H, N, D) with layout bhnd, or (B, N, D): one head; of a floating dtype, heads and tokens may be
// strided. theta: (H, E) or (1, E), E <= D/2, of x's dtype or float32 (float64 for float64 x), each number taken as it
// is; may require a gradient.
// Kept for backward: x, unless there is neither an activation nor a gradient of theta; two numbers per batch, head and
// feature for a softmax over the sequence. Throws Error naming the argument and both shapes when they do not fit.
Variable lrpe_rotate(Tape& tape, const Variable& x, const Variable& theta, const LrpeRotateOptions& options = {});

}  // namespace heddle
