#include "layers/ops/norm.h"

#include <cstdint>
#include <string_view>

#include "core/runtime/error.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

void check_same(std::string_view layer, const char* what, const Variable& found, const Variable& x) {
  if (!found.defined()) return;
  check(found.shape() == x.shape() && found.dtype() == x.dtype(), "[{}] {} is {} {}, expected {} {}: that of x", layer,
        what, name(found.dtype()), found.shape(), name(x.dtype()), x.shape());
  check_rows(layer, what, found);
}

void check_vector(std::string_view layer, const char* what, const Variable& found, const Variable& x) {
  if (!found.defined()) return;
  const Shape expected{x.shape()[-1]};
  check(found.shape() == expected, "[{}] {} has shape {}, expected {}: the last dimension of x {}", layer, what,
        found.shape(), expected, x.shape());
  check_dtype_or_wider(layer, what, found, x);
  check_dense(layer, what, found);
}

void check_norm(std::string_view layer, const Variable& x, const NormInputs& inputs, const NormOptions& options) {
  check_rows(layer, "x", x);
  const int64_t dim = x.shape()[-1];
  check(dim > 0, "[{}] x has shape {}, expected at least one feature", layer, x.shape());
  check(options.groups >= 1 && dim % options.groups == 0,
        "[{}] groups is {}, expected a divisor of the last dimension of x {}", layer, options.groups, x.shape());
  check(options.eps >= 0.0, "[{}] eps is {}, expected a number >= 0", layer, options.eps);
  check_same(layer, "residual", inputs.residual, x);
  check_same(layer, "gate", inputs.gate, x);
  if (inputs.gate.defined()) check_fused_activation(layer, "gate_act", options.gate_act);
  check_vector(layer, "weight", inputs.weight, x);
  check_vector(layer, "bias", inputs.bias, x);
  check(!inputs.weight.defined() || !inputs.bias.defined() || inputs.bias.dtype() == inputs.weight.dtype(),
        "[{}] bias is {}, expected {}: the dtype of weight", layer, name(inputs.bias.dtype()),
        name(inputs.weight.dtype()));
}

struct NormNode {
  kernels::NormOptions options;
  Slot x, residual, gate, weight, bias, y, r;
  Tensor saved_r;         // x + residual if it was stored, else x
  Tensor saved_residual;  // only when r was not stored
  Tensor saved_gate, saved_weight, saved_bias;
  Tensor mean, inv_std;

  void backward(Tape& tape) {
    Context& context = tape.context();
    Tensor d_y = tape.take_gradient(y);
    const Tensor d_r = r.id == x.id ? Tensor{} : tape.take_gradient(r);
    if (!d_y.defined()) {  // only r was used
      pass_gradient(tape, x, d_r);
      pass_gradient(tape, residual, d_r);
      return;
    }
    kernels::NormBackwardArgs args;
    args.x = rows_view(saved_r);
    args.residual = rows_view(saved_residual);
    args.gate = rows_view(saved_gate);
    args.weight = vector_view(saved_weight);
    args.bias = vector_view(saved_bias);
    args.mean = vector_view(mean);
    args.inv_std = vector_view(inv_std);
    args.d_y = rows_view(d_y);
    args.options = options;
    KernelDestinations destinations(tape);
    args.d_gate = destinations.rows_of(gate, d_y.dtype());
    args.d_weight = destinations.vector_of(weight);
    args.d_bias = destinations.vector_of(bias);
    Tensor partials;
    if (args.d_weight || args.d_bias) {
      const MemoryScope scope(context, MemoryCategory::workspace);
      partials = Tensor::empty(context, {kernels::norm_partials(args.x.rows), 2 * args.x.cols},
                               accumulate_type(saved_r.dtype()));
      args.partials = rows_view(partials);
    }
    if (tape.can_share_gradient(x) && tape.can_share_gradient(residual)) {
      // One buffer serves d_x and d_residual, and d_r as well when nobody else holds it.
      const bool in_place = d_r.defined() && d_r.is_unique();
      const Tensor shared = in_place ? d_r : Tensor::empty(context, saved_r.shape(), saved_r.dtype());
      if (in_place) {
        args.d_x = {rows_view(shared), GradientMode::accumulate};
      } else {
        args.d_r = rows_view(d_r);
        args.d_x = {rows_view(shared), GradientMode::overwrite};
      }
      kernels::norm_backward(context, args);
      destinations.finish();
      pass_gradient(tape, x, shared);
      pass_gradient(tape, residual, shared);
      return;
    }
    args.d_r = rows_view(d_r);
    args.d_x = destinations.rows_of(x, d_y.dtype());
    args.d_residual = destinations.rows_of(residual, d_y.dtype());
    kernels::norm_backward(context, args);
    destinations.finish();
  }
};

}  // namespace

Normed norm(Tape& tape, const Variable& x, const NormInputs& inputs, const NormOptions& options,
            std::string_view layer) {
  check_norm(layer, x, inputs, options);
  Context& context = tape.context();
  const bool recorded = tape.records(layer, {{"x", x},
                                             {"residual", inputs.residual},
                                             {"gate", inputs.gate},
                                             {"weight", inputs.weight},
                                             {"bias", inputs.bias}});
  const bool has_residual = inputs.residual.defined();
  const bool stores_r = has_residual && options.return_residual;
  const DType statistics = accumulate_type(x.dtype());
  const int64_t rows = x.value.numel() / x.shape()[-1];

  Normed result;
  result.y = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  if (stores_r) result.r = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  if (!has_residual) result.r = x;
  Tensor mean, inv_std;
  if (recorded) {
    inv_std = Tensor::empty(context, {rows, options.groups}, statistics);
    if (options.center) mean = Tensor::empty(context, {rows, options.groups}, statistics);
  }
  kernels::norm_forward(context, {.x = rows_view(x.value),
                                  .residual = rows_view(inputs.residual.value),
                                  .gate = rows_view(inputs.gate.value),
                                  .weight = vector_view(inputs.weight.value),
                                  .bias = vector_view(inputs.bias.value),
                                  .y = rows_view(result.y.value),
                                  .r = stores_r ? rows_view(result.r.value) : kernels::RowsView{},
                                  .mean = vector_view(mean),
                                  .inv_std = vector_view(inv_std),
                                  .options = options});
  if (!recorded) return result;

  tape.record(NormNode{.options = options,
                       .x = x.slot,
                       .residual = inputs.residual.slot,
                       .gate = inputs.gate.slot,
                       .weight = inputs.weight.slot,
                       .bias = inputs.bias.slot,
                       .y = result.y.slot,
                       .r = result.r.slot,
                       .saved_r = stores_r ? result.r.value : x.value,
                       .saved_residual = stores_r ? Tensor{} : inputs.residual.value,
                       .saved_gate = inputs.gate.value,
                       .saved_weight = inputs.weight.value,
                       .saved_bias = inputs.gate.requires_grad() ? inputs.bias.value : Tensor{},
                       .mean = mean,
                       .inv_std = inv_std},
              {x, inputs.residual, inputs.gate, inputs.weight, inputs.bias},
              {result.y, stores_r ? result.r.slot : Slot{}});
  return result;
}

}  // namespace heddle
