// Fused normalization with residual and gate.                                        docs/layers.md#normalization
//   r = x + residual;  p = gate before ? r * act(gate) : r;  q = center ? p - mean(p) : p
//   y = scale * q / sqrt(mean(q^2) + eps) * weight + bias;   y = gate after ? y * act(gate) : y
// x, residual, gate, y, r: (..., dim) of one floating dtype. weight, bias: (dim), both of x's dtype or both of full
// precision: float32 (float64 for float64 x). Statistics are taken over `groups` groups of dim / groups features, from
// the rounded r.
#pragma once

#include <string_view>

#include "core/autograd/tape.h"
#include "kernels/norm/norm.h"

namespace heddle {

using kernels::Activation;
using kernels::GatePosition;

struct NormOptions : kernels::NormOptions {
  // Whether r is an output. Without it, backward computes r again from x and residual.
  bool return_residual = true;
};

// Optional inputs; undefined Variables are not there.
struct NormInputs {
  Variable residual;
  Variable gate;
  Variable weight;
  Variable bias;
};

struct Normed {
  Variable y;
  Variable r;  // the updated residual x + residual; x itself when there was none; undefined if not returned
};

// Throws Error naming `layer`, the argument and both shapes when shapes or dtypes do not fit.
Normed norm(Tape& tape, const Variable& x, const NormInputs& inputs, const NormOptions& options,
            std::string_view layer = "norm");

}  // namespace heddle
