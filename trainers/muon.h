// The matrix products of Muon.                                                             docs/design.md#optimizer
#pragma once

#include <cstdint>

#include "core/runtime/context.h"
#include "core/tensor/tensor.h"

namespace heddle {

// Newton-Schulz iterations that bring all singular values of x (rows, cols) near 1, most of them between 0.7 and 1.2,
// and keep its singular vectors. x is dense, of any floating dtype, and its singular values are at most 1, as a
// Frobenius norm of 1 makes sure. Each step is
//   x = a x + b (x x^T) x + c (x x^T)^2 x        with (a, b, c) = (3.4445, -4.7750, 2.0315)
// or, where x has more rows than columns, the same of the transposes. x is overwritten; the result may lie in other
// memory. Workspace: one more x and two square matrices of the shorter side.
// Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
Tensor orthogonalize(Context& context, Tensor x, int64_t steps);

}  // namespace heddle
