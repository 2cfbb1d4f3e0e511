// Linearized relative position encoding by cosine, of tokens on a grid of k axes.        docs/layers.md#lrpe-cosine
//   a = act(x);  phi[s, h, j] = s_i * theta[h, j mod e],  i = floor(j / e) + 1;  y = concat(a cos phi, a sin phi)
// Source: Qin et al., "Linearized relative positional encoding", arXiv:2307.09270.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"
#include "kernels/position/lrpe_cosine.h"

namespace heddle {

using kernels::Activation;
using kernels::Layout;
using kernels::Softmax;

struct LrpeCosineOptions {
  Activation act = Activation::none;
  Softmax softmax = Softmax::none;  // instead of act
  Layout layout = Layout::bnhd;
  Shape shape = {};          // (n_1 .. n_k) of the grid, the last fastest; empty: one axis of all tokens on it
  int64_t extra_tokens = 0;  // before the grid: their angles are 0
  int64_t offset = 0;        // position of the first token of the grid; 0 with more than one axis
  // int32, one element on the device of x: the tokens of a text that come before x, by which all positions are greater.
  // It is read when the operator runs, so that what a graph repeats can go on in the text. The extra tokens
  // are then the first of the text, and the grid has one axis. Inference only.
  Tensor tokens_before = {};
};

// x: (B, N, H, D), (B, H, N, D) with layout bhnd, or (B, N, D): one head; N = extra_tokens + n_1 * ... * n_k; of a
// floating dtype, heads and tokens may be strided. theta: (H, e) or (1, e), e * k >= D, of x's dtype or float32
// (float64 for float64 x), each number taken as it is; may require a gradient. Returns y of 2 D features.
// Kept for backward: x, unless there is neither an activation nor a gradient of theta; two numbers per batch, head and
// feature for a softmax over the sequence. Throws Error naming the argument and both shapes when they do not fit.
Variable lrpe_cosine(Tape& tape, const Variable& x, const Variable& theta, const LrpeCosineOptions& options = {});

}  // namespace heddle
