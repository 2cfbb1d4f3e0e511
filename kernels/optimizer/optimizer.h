// The kernels of the optimizer, which work on flat vectors.                             docs/design.md#optimizer
//   gradient_norm       writes (=) scalars[scalar_gradient_norm] = ||gradient||_2, or NaN when one of the losses is not
//           finite
//   update_parameters   writes (=) m, v, master, value and average, each part of the vectors with its own lr, the
//           learning rate times the scale of the part, and its own weight decay wd. In every rule
//           g = gradient * gradient_scale * min(1, clip_norm / (||gradient|| * gradient_scale))
//     adamw   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2, at most the largest finite number
//             master -= lr * (m / correction1 / (sqrt(v / correction2) + eps) + wd * master)
//     lion    c = beta1 m + (1 - beta1) g;  m = beta2 m + (1 - beta2) g;  master -= lr * (sign(c) + wd * master)
//     sgd     h = g + wd * master;  m = momentum m + h;  master -= lr * (nesterov ? h + momentum m : m)
//             With an empty m: master -= lr * h
//     muon    m = momentum m + (1 - momentum) g and nothing else, in parts that have no v, with which
//             kernels/optimizer/muon.h goes on; adamw in the others
//           value = master;  average = average_decay average + (1 - average_decay) master
//           When the gradient norm is not finite it writes nothing: the step is left out where the numbers are, also
//           in the replay of a graph, and the caller reads the norm afterwards.
//   exchange            a (=) b and b (=) a
// Everything that changes from step to step is read from a small vector in device memory, so that a captured graph of
// the step can be replayed with new values.
// Sources: Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv:1711.05101; Chen et al., "Symbolic
// discovery of optimization algorithms", arXiv:2302.06675; torch.optim.SGD.
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
  scalar_average_decay,   // of the average of the weights
  scalar_average_rest,    // 1 - that decay, taken in double and rounded once
  step_scalars = 8,
};

// Columns of the table of parts, (parts, part_columns) in float64. The parts follow each other from element 0 of the
// flat vectors to the last. They begin at multiples of 128, in the flat vectors and in v.
enum PartColumn : int {
  part_end,      // one past the last element of the part in the flat vectors
  part_begin_v,  // where v begins to hold the part's second moments; -1: it has none
  part_lr_scale,
  part_weight_decay,
  part_columns,
};

struct GradientNormArgs {
  VectorView gradient;
  VectorView scalars;
  VectorView partials;     // workspace, gradient_norm_partials(gradient.size) elements of the dtype of gradient
  VectorView losses = {};  // of the micro-batches, dtype of scalars; empty: only the gradient counts
};
// Number of partial norms: one for each 16384 elements. They are norms and not sums of squares, so that they fit the
// dtype wherever the whole norm does. Squares are taken in double, in which those of all numbers of float fit.
constexpr int64_t gradient_norm_partials(int64_t size) { return (size + 16383) / 16384; }

enum class UpdateRule : uint8_t { adamw, lion, sgd, muon };

struct UpdateArgs {
  UpdateRule rule = UpdateRule::adamw;
  VectorView master;    // float32 or float64
  VectorView gradient;  // dtype of master
  VectorView m;         // dtype of master; with sgd it may be empty
  VectorView v;         // dtype of master, as many elements as its parts have; empty with lion and sgd
  VectorView value;     // the copy that layers compute with; its accumulate type is the dtype of master. Empty: no copy
  VectorView average;   // dtype of master; empty: none is kept
  VectorView scalars;
  RowsView parts;  // the table, dense; the parts end with the last element of master
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double momentum = 0.0;
  bool nesterov = false;
};

// Vectors of one size and one dtype, float32 or float64, which do not overlap.
struct ExchangeArgs {
  VectorView a, b;
};

HEDDLE_KERNEL(gradient_norm, GradientNormArgs);
HEDDLE_KERNEL(update_parameters, UpdateArgs);
HEDDLE_KERNEL(exchange, ExchangeArgs);

}  // namespace heddle::kernels
