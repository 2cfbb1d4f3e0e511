#include "layers/ops/activation.h"

#include "kernels/dense/elementwise.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct ActivationNode {
  Activation act;
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    kernels::ActivationBackwardArgs args{rows_view(saved_x), rows_view(d_y), {}, act};
    const bool in_place = d_y.is_unique() && tape.can_share_gradient(x);
    KernelDestinations destinations(tape);
    args.d_x = in_place ? kernels::RowsDestination{rows_view(d_y)} : destinations.rows_of(x, saved_x.dtype());
    kernels::activation_backward(tape.context(), args);
    destinations.finish();
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

}  // namespace

Variable activation(Tape& tape, const Variable& x, Activation act) {
  check_rows("activation", "x", x);
  if (act == Activation::none) return x;
  const bool recorded = tape.records("activation", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::activation_forward(tape.context(), {rows_view(x.value), rows_view(y.value), act});
  if (!recorded) return y;

  tape.record(ActivationNode{.act = act, .x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

}  // namespace heddle
