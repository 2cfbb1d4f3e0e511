#include "layers/ops/guarded_divide.h"

#include <cstdint>

#include "kernels/dense/guarded_divide.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

constexpr const char* kName = "guarded_divide";

struct GuardedDivideNode {
  double eps;
  Slot x, divisor, y;
  Tensor saved_y, saved_divisor;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    KernelDestinations destinations(tape);
    kernels::GuardedDivideBackwardArgs args{rows_view(saved_y), rows_view(saved_divisor), rows_view(d_y), {}, {}, eps};
    const bool in_place = d_y.is_unique() && tape.can_share_gradient(x);
    args.d_x = in_place ? kernels::RowsDestination{rows_view(d_y)} : destinations.rows_of(x, d_y.dtype());
    args.d_divisor = destinations.rows_of(divisor, d_y.dtype());
    kernels::guarded_divide_backward(tape.context(), args);
    destinations.finish();
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

void check_inputs(const Variable& x, const Variable& divisor, double eps) {
  check_rows(kName, "x", x);
  check_rows(kName, "divisor", divisor);
  check_dtype(kName, "divisor", divisor, "x", x);
  Shape groups = divisor.shape();
  const int64_t count = groups[-1];
  const bool is_divided = count > 0 && x.shape()[-1] > 0 && x.shape()[-1] % count == 0;
  groups[-1] = x.shape()[-1];
  check(is_divided && groups == x.shape(),
        "[{}] divisor has shape {}, expected that of x {} but for a last dimension that divides that of x", kName,
        divisor.shape(), x.shape());
  check(eps > 0.0, "[{}] eps is {}, expected a number above 0", kName, eps);
}

}  // namespace

Variable guarded_divide(Tape& tape, const Variable& x, const Variable& divisor, double eps) {
  check_inputs(x, divisor, eps);
  const bool recorded = tape.records("guarded_divide", {{"x", x}, {"divisor", divisor}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::guarded_divide_forward(tape.context(),
                                  {rows_view(x.value), rows_view(divisor.value), rows_view(y.value), eps});
  if (!recorded) return y;

  tape.record(GuardedDivideNode{.eps = eps,
                                .x = x.slot,
                                .divisor = divisor.slot,
                                .y = y.slot,
                                .saved_y = y.value,
                                .saved_divisor = divisor.value},
              {x, divisor}, {y});
  return y;
}

}  // namespace heddle
