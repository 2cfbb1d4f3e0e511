// Between the tape's destinations and the kernels': small helpers that every layer's backward uses.
#pragma once

#include <cstdint>

#include "core/autograd/tape.h"
#include "kernels/common/views.h"
#include "kernels/dense/elementwise.h"

namespace heddle {

inline kernels::RowsDestination rows_destination(const GradientDestination& destination) {
  return {kernels::rows_view(destination.tensor), destination.mode};
}
inline kernels::VectorDestination vector_destination(const GradientDestination& destination) {
  return {kernels::vector_view(destination.tensor), destination.mode};
}
inline kernels::HeadsDestination heads_destination(const GradientDestination& destination,
                                                   kernels::Layout layout = kernels::Layout::bnhd) {
  return {kernels::heads_view(destination.tensor, layout), destination.mode};
}

// Whether the dimensions [begin, end) of a tensor can be seen as one, whose stride is `stride`; 0: any.
bool are_one(const Tensor& tensor, int begin, int end, int64_t stride = 0);

// Writes (=) or adds (+=) `from` to `to`, of one shape: in one kernel where both can be seen as the same matrix, else
// part by part. Both are contiguous in the same dimension.
void add_gradient(Context& context, const Tensor& from, const GradientDestination& to);

// Gives a gradient to an input unchanged: shared where that is possible, added where something is already there.
inline void pass_gradient(Tape& tape, Slot slot, const Tensor& gradient) {
  if (tape.share_gradient(slot, gradient)) return;
  add_gradient(tape.context(), gradient, tape.destination(slot));
}

}  // namespace heddle
