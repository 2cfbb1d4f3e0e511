#include "layers/ops/linear_cross_entropy.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/dense/gemm.h"
#include "kernels/loss/cross_entropy.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::Transpose;
using kernels::vector_view;

constexpr const char* kOperator = "linear_cross_entropy";

// The rows of a tensor (..., dim).
Tensor as_matrix(const Tensor& tensor, int64_t rows) { return tensor.reshape({rows, tensor.size(-1)}); }

// On the CPU, where targets are at hand. Of a target that is no class, a kernel knows the place within its part only.
void check_classes(const Context& context, const Tensor& targets, int64_t classes, int32_t ignored) {
  if (context.device().type != DeviceType::cpu) return;
  const std::span target(targets.data<int32_t>(), static_cast<size_t>(targets.numel()));
  const auto wrong = std::find_if(target.begin(), target.end(),
                                  [&](int32_t found) { return found != ignored && (found < 0 || found >= classes); });
  if (wrong == target.end()) return;
  fail("[{}] target {} is {}, expected one of [0, {}) or ignore_index {}", kOperator, wrong - target.begin(), *wrong,
       classes, ignored);
}

// Computes the logits of one part of the rows after the other in the same memory, which visit may write over.
// visit(part, logits) is called with part(tensor), the rows of the part of a tensor whose first dimension is rows; once
// where there are no rows. On meta, where kernels do nothing, the first part alone is visited: the others take no other
// memory, and there may be billions.
template <class Visit>
void for_each_part(Context& context, const Tensor& x, const Tensor& weight, int64_t chunk, const Visit& visit) {
  const int64_t rows = x.size(0);
  const MemoryScope scope(context, MemoryCategory::workspace);
  const Tensor memory = Tensor::empty(context, {std::min(chunk, rows), weight.size(0)}, x.dtype());
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + chunk, rows);
    const auto part = [begin, end](const Tensor& whole) { return whole.slice(0, begin, end); };
    const Tensor logits = memory.slice(0, 0, end - begin);
    kernels::gemm(context, {.a = rows_view(part(x)),
                            .b = rows_view(weight),
                            .transpose_b = Transpose::yes,
                            .bias = {},
                            .c = {rows_view(logits)}});
    visit(part, logits);
    begin = end;
  } while (begin < rows && !context.is_meta());
}

// The gradients of the sum of the rows' losses, in the accumulate type; undefined where none is wanted.
struct SumGradients {
  Tensor x, weight;
};

struct LinearCrossEntropyNode {
  Reduction reduction;
  DType dtype;  // of x and weight
  Slot x, weight, loss;
  SumGradients of_sum;
  Tensor count;

  void backward(Tape& tape) {
    const Tensor d_loss = tape.take_gradient(loss);
    pass(tape, x, of_sum.x, d_loss);
    pass(tape, weight, of_sum.weight, d_loss);
  }

  // The gradient of an input: in the memory of `from` where it can stay there.
  void pass(Tape& tape, Slot input, const Tensor& from, const Tensor& d_loss) const {
    if (!from.defined()) return;
    const auto scale = [&](const kernels::RowsDestination& to) {
      kernels::scale(tape.context(),
                     {.from = rows_view(from),
                      .to = to,
                      .factor = vector_view(d_loss),
                      .divisor = reduction == Reduction::mean ? vector_view(count) : kernels::VectorView{}});
    };
    if (from.dtype() == dtype && tape.can_share_gradient(input)) {
      scale({rows_view(from)});
      pass_gradient(tape, input, from);
    } else {
      KernelDestinations destinations(tape);
      scale(destinations.rows_of(input));
      destinations.finish();
    }
  }
};

void check_inputs(const Tape& tape, const Variable& x, const Variable& weight, const Tensor& targets,
                  const LinearCrossEntropyOptions& options) {
  check_rows(kOperator, "x", x);
  check_rows(kOperator, "weight", weight);
  check(weight.value.rank() == 2 && weight.shape()[1] == x.shape()[-1] && weight.shape()[0] > 0,
        "[{}] weight has shape {}, expected (classes, {}), at least one class: {} is the last dimension of x {}",
        kOperator, weight.shape(), x.shape()[-1], x.shape()[-1], x.shape());
  check_dtype(kOperator, "weight", weight, "x", x);
  check_targets(kOperator, tape, targets, "x", x, options.loss);
  check(options.loss.reduction != Reduction::none, "[{}] reduction is none, expected mean or sum", kOperator);
  check(options.chunk > 0, "[{}] chunk is {}, expected at least one row", kOperator, options.chunk);
}

}  // namespace

Variable linear_cross_entropy(Tape& tape, const Variable& x, const Variable& weight, const Tensor& targets,
                              const LinearCrossEntropyOptions& options) {
  Context& context = tape.context();
  check_inputs(tape, x, weight, targets, options);
  check_classes(context, targets, weight.shape()[0], options.loss.ignore_index);
  const bool recorded = tape.records("linear_cross_entropy", {{"x", x}, {"weight", weight}});
  const DType exact = accumulate_type(x.dtype());
  const int64_t rows = targets.numel();
  const Tensor x_rows = as_matrix(x.value, rows), row_targets = targets.reshape({rows});
  Variable loss = tape.output(Tensor::empty(context, {}, exact), recorded);
  const Tensor count = Tensor::empty(context, {1}, exact);
  SumGradients of_sum;
  if (recorded && x.requires_grad()) of_sum.x = Tensor::empty(context, x.shape(), exact);
  if (recorded && weight.requires_grad()) of_sum.weight = Tensor::empty(context, weight.shape(), exact);
  {
    const MemoryScope scope(context, MemoryCategory::workspace);
    const Tensor row_losses = Tensor::empty(context, {rows}, exact);
    const Tensor maxima = Tensor::empty(context, {rows}, exact), rests = Tensor::empty(context, {rows}, exact);
    const Tensor d_x_rows = of_sum.x.defined() ? as_matrix(of_sum.x, rows) : Tensor{};
    CrossEntropyOptions of_rows = options.loss;
    of_rows.reduction = Reduction::none;
    GradientMode mode = GradientMode::overwrite;  // of the gradient of the weight
    for_each_part(context, x_rows, weight.value, options.chunk, [&](const auto& part, const Tensor& logits) {
      kernels::cross_entropy_forward(context, {.logits = rows_view(logits),
                                               .targets = vector_view(part(row_targets)),
                                               .loss = {},
                                               .maxima = vector_view(part(maxima)),
                                               .rests = vector_view(part(rests)),
                                               .row_losses = vector_view(part(row_losses)),
                                               .count = {},
                                               .d_logits = recorded ? rows_view(logits) : kernels::RowsView{},
                                               .options = of_rows});
      if (d_x_rows.defined()) {
        kernels::gemm(
            context,
            {.a = rows_view(logits), .b = rows_view(weight.value), .bias = {}, .c = {rows_view(part(d_x_rows))}});
      }
      if (of_sum.weight.defined()) {
        kernels::gemm(context, {.a = rows_view(logits),
                                .b = rows_view(part(x_rows)),
                                .transpose_a = Transpose::yes,
                                .bias = {},
                                .c = {rows_view(of_sum.weight), mode}});
        mode = GradientMode::accumulate;
      }
    });
    kernels::reduce_losses(context, {vector_view(row_losses), vector_view(row_targets), vector_view(loss.value),
                                     vector_view(count), options.loss});
  }
  if (!recorded) return loss;

  tape.record(LinearCrossEntropyNode{.reduction = options.loss.reduction,
                                     .dtype = x.dtype(),
                                     .x = x.slot,
                                     .weight = weight.slot,
                                     .loss = loss.slot,
                                     .of_sum = of_sum,
                                     .count = count},
              {x, weight}, {loss});
  return loss;
}

}  // namespace heddle
