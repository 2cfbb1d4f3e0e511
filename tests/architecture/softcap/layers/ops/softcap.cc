#include "layers/ops/softcap.h"

#include "kernels/dense/softcap.h"
#include "layers/ops/check.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct SoftcapNode {
  double cap;
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    KernelDestinations destinations(tape);
    kernels::softcap_backward(tape.context(), {rows_view(saved_x), rows_view(d_y), destinations.rows_of(x), cap});
    destinations.finish();
  }
};

}  // namespace

Variable softcap(Tape& tape, const Variable& x, double cap) {
  check_rows("softcap", "x", x);
  check(cap > 0.0, "[softcap] cap is {}, expected more than 0", cap);
  const bool recorded = tape.records("softcap", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::softcap_forward(tape.context(), {rows_view(x.value), rows_view(y.value), cap});
  if (!recorded) return y;

  tape.record(SoftcapNode{.cap = cap, .x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

}  // namespace heddle
