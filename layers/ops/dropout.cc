#include "layers/ops/dropout.h"

#include <cstdint>
#include <limits>

#include "kernels/dense/dropout.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct DropoutNode {
  DropoutOptions options;
  Slot x, y;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    const bool in_place = d_y.is_unique() && tape.can_share_gradient(x);
    KernelDestinations destinations(tape);
    const kernels::RowsDestination d_x =
        in_place ? kernels::RowsDestination{rows_view(d_y)} : rows_destination(destinations.of(x, d_y.dtype()));
    kernels::dropout(tape.context(), {rows_view(d_y), d_x, options.p, options.seed, options.first_element});
    destinations.finish();
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

}  // namespace

Variable dropout(Tape& tape, const Variable& x, const DropoutOptions& options) {
  check_rows("dropout", "x", x);
  check(options.p >= 0.0 && options.p <= 1.0, "[dropout] p is {}, expected a number from 0 to 1", options.p);
  const int64_t last = std::numeric_limits<int64_t>::max() - x.value.numel();
  check(options.first_element >= 0 && options.first_element <= last,
        "[dropout] first_element is {}, expected 0 to {}: elements that come before x {}", options.first_element, last,
        x.shape());
  if (options.p == 0.0 || tape.mode() == Tape::Mode::inference) return x;
  const bool recorded = tape.records("dropout", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::dropout(tape.context(),
                   {rows_view(x.value), {rows_view(y.value)}, options.p, options.seed, options.first_element});
  if (!recorded) return y;

  tape.record(DropoutNode{.options = options, .x = x.slot, .y = y.slot}, {x}, {y});
  return y;
}

}  // namespace heddle
