// The kernels of Muon beside its matrix products, for one matrix of the flat vectors.        docs/design.md#optimizer
//   muon_direction    writes (=) direction = u / max(||u||_2, eps),  u = nesterov ? (1 - momentum) g + momentum m : m
//                     with g as in kernels/optimizer/optimizer.h and m as update_parameters has left it
//   muon_polynomial   squared (=) a I + b gram + c squared, with a quintic's coefficients (a, b, c)
//   muon_apply        master -= lr * (direction_scale * direction + wd * master), lr the learning rate times lr_scale;
//                     then value = master and average = average_decay average + (1 - average_decay) master
//                     When the gradient norm is not finite it writes nothing.
// Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle::kernels {

struct MuonDirectionArgs {
  VectorView gradient, m;  // of the matrix; float32 or float64
  VectorView scalars;
  VectorView partials;   // workspace, gradient_norm_partials(m.size) elements of the dtype of m: norms
  VectorView direction;  // as many elements; its accumulate type is the dtype of m
  double momentum = 0.95;
  bool nesterov = true;
  double eps = 1e-7;
};

// gram and squared are dense (n, n) matrices of one dtype.
struct MuonPolynomialArgs {
  RowsView gram, squared;
  double a = 0.0, b = 0.0, c = 0.0;
};

struct MuonApplyArgs {
  VectorView master;          // of the matrix; float32 or float64
  VectorView direction;       // its accumulate type is the dtype of master
  VectorView value, average;  // as in UpdateArgs
  VectorView scalars;
  double lr_scale = 1.0;
  double weight_decay = 0.0;
  double direction_scale = 1.0;
};

HEDDLE_KERNEL(muon_direction, MuonDirectionArgs);
HEDDLE_KERNEL(muon_polynomial, MuonPolynomialArgs);
HEDDLE_KERNEL(muon_apply, MuonApplyArgs);

}  // namespace heddle::kernels
