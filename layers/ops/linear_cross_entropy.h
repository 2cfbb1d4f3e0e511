// Cross entropy of the logits x weight^T, a part of the rows at a time.            docs/layers.md#linear-cross-entropy
//   loss = cross_entropy(linear(x, weight), targets)
// x: (..., dim), rows may be strided; weight: (classes, dim) of the dtype of x; targets: int32 of the other dimensions
// of x, dense; loss: a scalar in the accumulate type. The logits of `chunk` rows exist at a time. Where gradients are
// wanted, forward writes those of the logits over them and multiplies them by weight and x at once; backward only
// scales by the gradient of the loss. Kept for backward: the gradients of x and weight in the accumulate type, if
// wanted. Source: Hsu et al., "Liger Kernel: efficient Triton kernels for LLM training", arXiv:2410.10989, section 3.2.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"
#include "layers/ops/cross_entropy.h"

namespace heddle {

struct LinearCrossEntropyOptions {
  CrossEntropyOptions loss = {};  // reduction: mean or sum
  int64_t chunk = 4096;           // rows whose logits exist at a time
};

// Throws Error when shapes, dtypes or options do not fit, and on the CPU for a target that is no class.
Variable linear_cross_entropy(Tape& tape, const Variable& x, const Variable& weight, const Tensor& targets,
                              const LinearCrossEntropyOptions& options = {});

}  // namespace heddle
