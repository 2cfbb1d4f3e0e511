// What both linearized relative position encodings share.                                      docs/layers.md#lrpe
#pragma once

#include <cstdint>

#include "kernels/common/views.h"

namespace heddle::kernels {

// The softmax that stands in place of an activation: over the features of a token and head, or over the tokens of a
// batch, head and feature.
enum class Softmax : uint8_t { none, feature, sequence };

// Number of splits of the sequence, each of which has a partial sum of d_theta: a function of the length alone.
constexpr int64_t lrpe_theta_partials(int64_t length) { return length < 256 ? (length > 0 ? length : 1) : 256; }

// y has the dtype, batch, length and heads of x; each encoding defines the number of features of y and the extents of
// theta. theta is (theta_heads, E), row-major, where theta_heads is 1 or heads, of the dtype of x or its accumulate
// type (float64 for float64, float32 otherwise). `maximum` and `sum` have batch * heads * dim elements of the
// accumulate type; a forward with softmax over the sequence writes (=) them and its backward reads them, else they are
// empty.
template <class Options>
struct LrpeForwardArgs {
  HeadsView x, y;
  RowsView theta;
  VectorView maximum, sum;
  Options options;
  // On the device of x: the number of tokens of a text that come before x, which is read when the kernel runs; nullptr:
  // none. Token n of x is token n + *tokens_before of the text. Not with a softmax over the sequence, nor with more
  // than one axis.
  const int32_t* tokens_before = nullptr;
};

template <class Options>
struct LrpeBackwardArgs {
  HeadsView x;    // empty when act and softmax are none and d_theta is not wanted
  HeadsView d_y;  // with the features of y
  RowsView theta;
  VectorView maximum, sum;
  HeadsDestination d_x;
  RowsDestination d_theta;  // of the dtype of theta or the accumulate type
  // Workspace, (lrpe_theta_partials(length), theta_heads * E) of the accumulate type when d_theta is wanted, else
  // empty: one row of partial sums for each split of the sequence, which are added in order.
  RowsView partials;
  // Workspace, batch * heads * dim elements of the accumulate type for softmax over the sequence, else empty.
  VectorView dots;
  Options options;
};

}  // namespace heddle::kernels
