// Fused normalization over groups of E = dim / groups features.                        docs/layers.md#normalization
//   r = x + residual                                  rounded to the storage dtype; r = x without residual
//   p = gate before ? r * act(gate) : r
//   q = center ? p - mean(p) : p                      mean over the group
//   y = scale * q / sqrt(mean(q^2) + eps) * weight + bias
//   y = gate after ? y * act(gate) : y
// Forward writes (=) y, r and the row statistics. Backward writes or adds (Destination) d_x, d_residual, d_gate,
// d_weight, d_bias; d_x and d_residual have the same values. One read of every input, one write of every output.
#pragma once

#include "kernels/common/activation.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

enum class GatePosition : uint8_t { pre, post };

struct NormOptions {
  bool center = false;
  int64_t groups = 1;
  double eps = 1e-5;
  double scale = 1.0;
  Activation gate_act = Activation::none;
  GatePosition gate_position = GatePosition::post;
};

// All rows views are (rows, dim) of one dtype; weight and bias have that dtype too. Statistics are float64 for float64
// and float32 otherwise, (rows, groups) row-major.
struct NormForwardArgs {
  RowsView x;
  RowsView residual;  // or empty
  RowsView gate;      // or empty: no gate
  VectorView weight;  // (dim) or empty
  VectorView bias;    // (dim) or empty
  RowsView y;
  RowsView r;          // empty: r is not stored
  VectorView mean;     // (rows * groups) or empty; needed by backward when options.center
  VectorView inv_std;  // (rows * groups) or empty: 1 / sqrt(mean(q^2) + eps), needed by backward
  NormOptions options;
};

struct NormBackwardArgs {
  RowsView x;         // r of the forward pass if it was stored (then residual is empty), else x
  RowsView residual;  // only when r was not stored: r is computed again
  RowsView gate;
  VectorView weight;
  VectorView bias;  // needed for d_gate of a gate after; may be empty when there was none
  VectorView mean, inv_std;
  RowsView d_y;
  RowsView d_r;  // gradient that arrived at r, or empty; added into d_x and d_residual
  RowsDestination d_x, d_residual, d_gate;
  VectorDestination d_weight, d_bias;  // dtype of x or its accumulate type
  // (norm_partials(rows), 2 * dim) of the accumulate type when d_weight or d_bias is wanted, else empty:
  // partial sums of d_weight in the first half of a row and of d_bias in the second, added in the order of the rows.
  RowsView partials;
  NormOptions options;
};

// Rows of partial sums: a function of the rows alone. The CPU fills all, so that its results depend on nothing else; a
// GPU as many as it has places for.
constexpr int64_t norm_partials(int64_t rows) { return rows < 396 ? (rows > 0 ? rows : 1) : 396; }

HEDDLE_KERNEL(norm_forward, NormForwardArgs);
HEDDLE_KERNEL(norm_backward, NormBackwardArgs);

}  // namespace heddle::kernels
