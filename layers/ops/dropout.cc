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

kernels::DropoutArgs arguments(const kernels::RowsView& x, const kernels::RowsDestination& y,
                               const DropoutOptions& options) {
  const Tensor& seed = options.seed_on_device;
  return {.x = x,
          .y = y,
          .p = options.p,
          .seed = options.seed,
          .first_element = options.first_element,
          .seed_on_device = seed.defined() ? seed.data<int64_t>() : nullptr};
}

struct DropoutNode {
  DropoutOptions options;
  Slot x, y;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    const bool in_place = d_y.is_unique() && tape.can_share_gradient(x);
    KernelDestinations destinations(tape);
    const kernels::RowsDestination d_x =
        in_place ? kernels::RowsDestination{rows_view(d_y)} : destinations.rows_of(x, d_y.dtype());
    kernels::dropout(tape.context(), arguments(rows_view(d_y), d_x, options));
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
  if (const Tensor& seed = options.seed_on_device; seed.defined()) {
    check(seed.dtype() == DType::int64 && seed.numel() == 1, "[dropout] seed_on_device is {} {}, expected one int64",
          name(seed.dtype()), seed.shape());
    tape.check_device(seed, "[dropout] the tensor seed_on_device");
  }
  if (options.p == 0.0 || tape.mode() == Tape::Mode::inference) return x;
  const bool recorded = tape.records("dropout", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  kernels::dropout(tape.context(), arguments(rows_view(x.value), {rows_view(y.value)}, options));
  if (!recorded) return y;

  tape.record(DropoutNode{.options = options, .x = x.slot, .y = y.slot}, {x}, {y});
  return y;
}

}  // namespace heddle
