// Cross entropy of the logits x weight^T, a part of the rows at a time.            docs/layers.md#linear-cross-entropy
//   loss = cross_entropy(linear(x, weight), targets)
// x: (..., dim), rows may be strided; weight: (classes, dim) of the dtype of x; targets: int32 of the other dimensions
// of x, dense; loss: a scalar in the accumulate type. The logits of `chunk` rows exist at a time, in forward and again
// in backward, which computes them anew. Kept for backward: x, weight and two numbers a row. Source: Wijmans et al.,
// "Cut your losses in large-vocabulary language models", arXiv:2411.09009.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"
#include "layers/ops/cross_entropy.h"

namespace heddle {

struct LinearCrossEntropyOptions {
  CrossEntropyOptions loss = {};  // reduction: mean or sum
  int64_t chunk = 1024;           // rows whose logits exist at a time
};

// Throws Error when shapes, dtypes or options do not fit, and on the CPU for a target that is no class.
Variable linear_cross_entropy(Tape& tape, const Variable& x, const Variable& weight, const Tensor& targets,
                              const LinearCrossEntropyOptions& options = {});

}  // namespace heddle
