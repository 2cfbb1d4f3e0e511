// What both linearized relative position encodings have in common.                             docs/layers.md#lrpe
#pragma once

#include <cstdint>

#include "kernels/common/views.h"

namespace heddle::kernels {

// Instead of an activation: over the features of a row, or over the tokens of a batch, head and feature.
enum class Softmax : uint8_t { none, feature, sequence };

// Stretches of positions that d_theta is summed over one by one: a function of the length alone.
constexpr int64_t lrpe_theta_partials(int64_t length) { return length < 256 ? (length > 0 ? length : 1) : 256; }

// y has the dtype, batch, length and heads of x; its features and what theta's extents must be are the encoding's.
// theta: (theta_heads, E) row-major, theta_heads is 1 or heads; of x's dtype or float32 (float64 for float64 x).
// `maximum` and `sum`: float32 (float64) vectors of batch * heads * dim, written by a forward with softmax over the
// sequence and read by its backward; else empty.
template <class Options>
struct LrpeForwardArgs {
  HeadsView x, y;
  RowsView theta;
  VectorView maximum, sum;
  Options options;
};

template <class Options>
struct LrpeBackwardArgs {
  HeadsView x;    // empty when act and softmax are none and d_theta is not wanted
  HeadsView d_y;  // with the features of y
  RowsView theta;
  VectorView maximum, sum;
  HeadsDestination d_x;
  RowsDestination d_theta;  // of theta's dtype, or float32 (float64)
  // (lrpe_theta_partials(length), theta_heads * E) of float32 (float64) when d_theta is wanted, else empty: workspace,
  // one row for each stretch of positions, added up in order.
  RowsView partials;
  // batch * heads * dim numbers of float32 (float64) for softmax over the sequence, else empty: workspace.
  VectorView dots;
  Options options;
};

}  // namespace heddle::kernels
