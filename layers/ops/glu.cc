#include "layers/ops/glu.h"

#include <cstdint>
#include <vector>

#include "kernels/dense/elementwise.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct GluNode {
  Activation act;
  Slot a, b, y;
  Tensor saved_a, saved_b;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    KernelDestinations destinations(tape);
    kernels::GluBackwardArgs args{rows_view(saved_a), rows_view(saved_b), rows_view(d_y), {}, {}, act};
    args.d_a = destinations.rows_of(a, d_y.dtype());
    args.d_b = destinations.rows_of(b, d_y.dtype());
    kernels::glu_backward(tape.context(), args);
    destinations.finish();
  }
};

}  // namespace

Variable glu(Tape& tape, const Variable& a, const Variable& b, Activation act) {
  check_rows("glu", "a", a);
  check_rows("glu", "b", b);
  check(b.shape() == a.shape(), "[glu] b has shape {}, expected {}: that of a", b.shape(), a.shape());
  check_dtype("glu", "b", b, "a", a);
  const bool recorded = tape.records("glu", {{"a", a}, {"b", b}});
  Variable y = tape.output(Tensor::empty(tape.context(), a.shape(), a.dtype()), recorded);
  kernels::glu_forward(tape.context(), {rows_view(a.value), rows_view(b.value), rows_view(y.value), act});
  if (!recorded) return y;

  tape.record(GluNode{.act = act, .a = a.slot, .b = b.slot, .y = y.slot, .saved_a = a.value, .saved_b = b.value},
              {a, b}, {y});
  return y;
}

Variable glu_of_halves(Tape& tape, const Variable& both, Activation act) {
  check(both.value.rank() >= 1 && both.shape()[-1] % 2 == 0,
        "[glu] both halves together have shape {}, expected an even last dimension", both.shape());
  const int64_t hidden = both.shape()[-1] / 2;
  const std::vector<Variable> halves = split_last(tape, both, {hidden, hidden});
  return glu(tape, halves[0], halves[1], act);
}

}  // namespace heddle
