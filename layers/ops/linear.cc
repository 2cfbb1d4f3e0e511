#include "layers/ops/linear.h"

#include <cmath>

#include "core/config/config_node.h"
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
  check(bias.shape() == expected && bias.value.is_contiguous(),
        "[linear] bias has shape {}, expected {}: the first dimension of weight {}", to_string(bias.shape()),
        to_string(expected), to_string(weight.shape()));
  check_dtype("linear", "bias", bias, "x", x);
}

struct LinearNode : Node {
  Slot x, weight, bias, y;
  Tensor saved_x;       // for d_weight
  Tensor saved_weight;  // for d_x

  std::string_view name() const override { return "linear"; }

  void backward(Tape& tape) override {
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

  auto node = std::make_unique<LinearNode>();
  node->x = x.slot;
  node->weight = weight.slot;
  node->bias = bias.slot;
  node->y = y.slot;
  if (weight.requires_grad()) node->saved_x = x.value;
  if (x.requires_grad()) node->saved_weight = weight.value;
  tape.record(std::move(node), {y.slot});
  return y;
}

NamedVariables apply_linear(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  options.finish();
  return {{"y", linear(tape, inputs.at("x"), inputs.at("weight"), input_or_none(inputs, "bias"))}};
}

Linear::Linear(const Options& options, const ModuleBuilder& builder, int64_t in, int64_t out) {
  const double init_std = options.init_std > 0.0 ? options.init_std : 1.0 / std::sqrt(static_cast<double>(in));
  weight_ = builder.add("weight", {out, in}, Initializer::normal(init_std));
  if (options.bias) bias_ = builder.add("bias", {out}, Initializer::constant(0.0));
}

Variable Linear::forward(Tape& tape, const Variable& x) const {
  return linear(tape, x, ParameterSet::on(tape, *weight_),
                bias_ != nullptr ? ParameterSet::on(tape, *bias_) : Variable{});
}

}  // namespace heddle
