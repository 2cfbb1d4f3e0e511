#include "layers/ops/log_sigmoid.h"

#include "kernels/dense/log_sigmoid.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct LogSigmoidNode {
  double divisor;
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    KernelDestinations destinations(tape);
    const kernels::RowsDestination d_x = destinations.rows_of(x, saved_x.dtype());
    kernels::log_sigmoid_backward(tape.context(), {rows_view(saved_x), rows_view(d_y), d_x, divisor});
    destinations.finish();
  }
};

}  // namespace

Variable log_sigmoid(Tape& tape, const Variable& x, double divisor) {
  check_rows("log_sigmoid", "x", x);
  check(divisor > 0.0, "[log_sigmoid] divisor is {}, expected a number above 0", divisor);
  const bool recorded = tape.records("log_sigmoid", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), accumulate_type(x.dtype())), recorded);
  kernels::log_sigmoid_forward(tape.context(), {rows_view(x.value), rows_view(y.value), divisor});
  if (!recorded) return y;

  tape.record(LogSigmoidNode{.divisor = divisor, .x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

}  // namespace heddle
