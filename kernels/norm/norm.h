// Fused normalization over groups of E = dim / groups features.                        docs/layers.md#normalization
//   r = x + residual                                  rounded to the storage dtype; r = x without residual
//   p = pre gate ? r * act(gate) : r
//   q = center ? p - mean(p) : p                      mean over the group
//   z = scale * q / sqrt(mean(q^2) + eps) * weight + bias
//   y = post gate ? z * act(gate) : z
// Forward writes (=) y, r and the statistics of the groups. Backward writes (=) or adds (+=) d_x, d_residual, d_gate,
// d_weight and d_bias; d_x and d_residual receive the same values. Every input is read once from memory and every
// output written once.
#pragma once

#include <cstdint>

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

// All views of rows are (rows, dim) of one dtype. weight and bias have that dtype or its accumulate type, both the
// same. The statistics are (rows, groups), row-major, of the accumulate type: float64 for float64, float32 otherwise.
struct NormForwardArgs {
  RowsView x;
  RowsView residual;  // or empty
  RowsView gate;      // or empty: no gate
  VectorView weight;  // (dim) or empty
  VectorView bias;    // (dim) or empty
  RowsView y;
  RowsView r;          // empty: r is not stored
  VectorView mean;     // (rows * groups) or empty; backward needs it when options.center
  VectorView inv_std;  // (rows * groups) or empty: 1 / sqrt(mean(q^2) + eps), which backward needs
  NormOptions options;
};

struct NormBackwardArgs {
  RowsView x;         // r of the forward pass if it was stored, else x
  RowsView residual;  // given only if r was not stored: r is then computed again
  RowsView gate;
  VectorView weight;
  VectorView bias;           // for d_gate of a post gate; empty if forward had none
  VectorView mean, inv_std;  // a GPU uses the sign bits of inv_std as marks for the time of the kernel
  RowsView d_y;
  RowsView d_r;  // the gradient of the output r, or empty; it is added into d_x and d_residual
  RowsDestination d_x, d_residual, d_gate;
  VectorDestination d_weight, d_bias;  // dtype of x or its accumulate type
  // Workspace, (norm_partials(rows), 2 * dim) of the accumulate type when d_weight or d_bias is wanted, else empty. The
  // first half of a row holds partial sums of d_weight and the second half of d_bias; its rows are added in order.
  RowsView partials;
  NormOptions options;
};

// The dtype of weight and bias; that of x when there is neither.
template <class Args>
DType parameter_dtype(const Args& args) {
  return args.weight ? args.weight.dtype : args.bias ? args.bias.dtype : args.x.dtype;
}

// Number of rows of partial sums, a function of the rows alone. The CPU uses all of them, so that its results depend on
// nothing else; a GPU uses as many as it runs blocks at once.
constexpr int64_t norm_partials(int64_t rows) { return rows < 396 ? (rows > 0 ? rows : 1) : 396; }

HEDDLE_KERNEL(norm_forward, NormForwardArgs);
HEDDLE_KERNEL(norm_backward, NormBackwardArgs);

}  // namespace heddle::kernels
