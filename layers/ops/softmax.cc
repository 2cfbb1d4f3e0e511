#include "layers/ops/softmax.h"

#include "kernels/dense/softmax.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct SoftmaxNode {
  int64_t groups;
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    const bool in_place = d_y.is_unique() && tape.can_share_gradient(x);
    KernelDestinations destinations(tape);
    const kernels::RowsDestination d_x =
        in_place ? kernels::RowsDestination{rows_view(d_y)} : destinations.rows_of(x, d_y.dtype());
    kernels::softmax_backward(tape.context(), {rows_view(saved_x), rows_view(d_y), d_x, groups});
    destinations.finish();
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

}  // namespace

Variable softmax(Tape& tape, const Variable& x, int64_t groups) {
  check_rows("softmax", "x", x);
  check(groups >= 1 && x.shape()[-1] % groups == 0,
        "[softmax] groups is {}, expected a divisor of the last dimension of x {}", groups, x.shape());
  const bool recorded = tape.records("softmax", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::softmax_forward(tape.context(), {rows_view(x.value), rows_view(y.value), groups});
  if (!recorded) return y;

  tape.record(SoftmaxNode{.groups = groups, .x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

}  // namespace heddle
