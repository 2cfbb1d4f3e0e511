#include "layers/ops/linear.h"

#include "kernels/dense/gemm.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::Transpose;
using kernels::vector_view;

void check_linear(const Variable& x, const Variable& weight, const Variable& bias) {
  check_rows("linear", "x", x);
  check_rows("linear", "weight", weight);
  check(weight.value.rank() == 2 && weight.shape()[1] == x.shape()[-1],
        "[linear] weight has shape {}, expected (out, {}): the last dimension of x {}", to_string(weight.shape()),
        x.shape()[-1], to_string(x.shape()));
  check_dtype("linear", "weight", weight, "x", x);
  if (!bias.defined()) return;
  const Shape expected{weight.shape()[0]};
  check(bias.shape() == expected, "[linear] bias has shape {}, expected {}: the first dimension of weight {}",
        to_string(bias.shape()), to_string(expected), to_string(weight.shape()));
  check_dtype("linear", "bias", bias, "x", x);
  check_dense("linear", "bias", bias);
}

struct LinearNode {
  Slot x, weight, bias, y;
  Tensor saved_x;       // for d_weight
  Tensor saved_weight;  // for d_x

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    if (const GradientDestination d_bias = tape.destination(bias)) {
      kernels::column_sum(context, {rows_view(d_y), vector_destination(d_bias)});
    }
    if (const GradientDestination d_weight = tape.destination(weight)) {
      kernels::gemm(context, {.a = rows_view(d_y),
                              .b = rows_view(saved_x),
                              .transpose_a = Transpose::yes,
                              .bias = {},
                              .c = rows_destination(d_weight)});
    }
    saved_x = {};  // nothing else may hold it: then d_x can have its memory
    if (const GradientDestination d_x = tape.destination(x)) {
      kernels::gemm(context,
                    {.a = rows_view(d_y), .b = rows_view(saved_weight), .bias = {}, .c = rows_destination(d_x)});
    }
  }
};

}  // namespace

Variable linear(Tape& tape, const Variable& x, const Variable& weight, const Variable& bias) {
  check_linear(x, weight, bias);
  const bool recorded = tape.records({&x, &weight, &bias});
  Shape shape = x.shape();
  shape[-1] = weight.shape()[0];
  Variable y = tape.output(Tensor::empty(tape.context(), shape, x.dtype()), recorded);
  kernels::gemm(tape.context(), {.a = rows_view(x.value),
                                 .b = rows_view(weight.value),
                                 .transpose_b = Transpose::yes,
                                 .bias = vector_view(bias.value),
                                 .c = {rows_view(y.value)}});
  if (!recorded) return y;

  tape.record(LinearNode{.x = x.slot,
                         .weight = weight.slot,
                         .bias = bias.slot,
                         .y = y.slot,
                         .saved_x = weight.requires_grad() ? x.value : Tensor{},
                         .saved_weight = x.requires_grad() ? weight.value : Tensor{}},
              {x, weight, bias}, {y});
  return y;
}

}  // namespace heddle
