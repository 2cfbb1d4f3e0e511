// The kernels of the optimizer, which work on flat vectors.                             docs/design.md#optimizer
//   gradient_norm   writes (=) scalars[scalar_gradient_norm] = ||gradient||_2, or NaN when one of the losses is not
//                   finite
//   adamw           writes (=) master, m, v and value:
//           g = gradient * gradient_scale * min(1, clip_norm / (||gradient|| * gradient_scale))
//           m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//           master -= lr * (m / correction1 / (sqrt(v / correction2) + eps) + weight_decay * master);  value = master
//           When the gradient norm is not finite it writes nothing: the step is left out where the numbers are, also
//           in the replay of a graph, and the caller reads the norm afterwards.
// Everything that changes from step to step is read from a small vector in device memory, so that a captured graph of
// the step can be replayed with new values.
// Source: Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv:1711.05101.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// Indices into the vector of scalars, which is float64 for float64 masters and float32 otherwise.
enum StepScalar : int {
  scalar_learning_rate,
  scalar_correction1,     // 1 - beta1^step
  scalar_correction2,     // 1 - beta2^step
  scalar_clip_norm,       // 0: no clipping
  scalar_gradient_scale,  // 1 / (micro-batches * loss scale)
  scalar_gradient_norm,   // written by gradient_norm: the norm before gradient_scale is applied
  step_scalars = 8,
};

struct GradientNormArgs {
  VectorView gradient;
  VectorView scalars;
  VectorView partials;     // workspace, gradient_norm_partials(gradient.size) elements of the accumulate type
  VectorView losses = {};  // of the micro-batches, dtype of scalars; empty: only the gradient counts
};
// Number of partial sums: one for each 16384 elements.
constexpr int64_t gradient_norm_partials(int64_t size) { return (size + 16383) / 16384; }

struct AdamWArgs {
  VectorView master;    // float32 or float64
  VectorView gradient;  // dtype of master
  VectorView m, v;      // dtype of master
  VectorView value;     // the copy that layers compute with; its accumulate type is the dtype of master. Empty: no copy
  VectorView scalars;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.0;
};

HEDDLE_KERNEL(gradient_norm, GradientNormArgs);
HEDDLE_KERNEL(adamw, AdamWArgs);

}  // namespace heddle::kernels
