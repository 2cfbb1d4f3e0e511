#include "layers/ops/linear_cross_entropy.h"

#include <algorithm>
#include <cstdint>

#include "kernels/dense/gemm.h"
#include "kernels/loss/cross_entropy.h"
#include "layers/ops/check.h"
#include "layers/ops/distinct_destinations.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::Transpose;
using kernels::vector_view;

constexpr const char* kOperator = "linear_cross_entropy";

// The rows of a tensor (..., dim).
Tensor as_matrix(const Tensor& tensor, int64_t rows) { return tensor.reshape({rows, tensor.size(-1)}); }

// Computes the logits of one part of the rows after the other in the same memory. visit(part, logits) is called with
// part(tensor), the rows of the part of a tensor whose first dimension is rows; once where there are no rows. On meta,
// where kernels do nothing, the first part alone is visited: the others take no other memory, and there may be
// billions.
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

struct LinearCrossEntropyNode {
  LinearCrossEntropyOptions options;
  Slot x, weight, loss;
  Tensor saved_x, saved_weight, targets, maxima, rests, count;  // saved_x (rows, dim), targets (rows)

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_loss = tape.take_gradient(loss);
    DistinctDestinations destinations(tape);
    const GradientDestination d_x = destinations.of(x), d_weight = destinations.of(weight);
    const Tensor d_x_rows = d_x ? as_matrix(d_x.tensor, saved_x.size(0)) : Tensor{};
    // The sum over several parts is rounded once.
    const bool needs_sum = d_weight && saved_x.size(0) > options.chunk &&
                           d_weight.tensor.dtype() != accumulate_type(d_weight.tensor.dtype());
    const MemoryScope scope(context, MemoryCategory::workspace);
    GradientDestination sum = d_weight;
    if (needs_sum) {
      sum = {Tensor::empty(context, saved_weight.shape(), accumulate_type(saved_weight.dtype()))};
    }
    for_each_part(context, saved_x, saved_weight, options.chunk, [&](const auto& part, const Tensor& logits) {
      kernels::cross_entropy_backward(context, {.logits = rows_view(logits),
                                                .targets = vector_view(part(targets)),
                                                .maxima = vector_view(part(maxima)),
                                                .rests = vector_view(part(rests)),
                                                .count = vector_view(count),
                                                .d_loss = vector_view(d_loss),
                                                .d_logits = {rows_view(logits)},
                                                .options = options.loss});
      if (d_x) {
        kernels::gemm(context, {.a = rows_view(logits),
                                .b = rows_view(saved_weight),
                                .bias = {},
                                .c = {rows_view(part(d_x_rows)), d_x.mode}});
      }
      if (!d_weight) return;
      kernels::gemm(context, {.a = rows_view(logits),
                              .b = rows_view(part(saved_x)),
                              .transpose_a = Transpose::yes,
                              .bias = {},
                              .c = rows_destination(sum)});
      sum.mode = GradientMode::accumulate;
    });
    if (needs_sum) kernels::accumulate(context, {rows_view(sum.tensor), rows_destination(d_weight)});
    destinations.finish();
  }
};

void check_inputs(const Variable& x, const Variable& weight, const Tensor& targets,
                  const LinearCrossEntropyOptions& options) {
  check_rows(kOperator, "x", x);
  check_rows(kOperator, "weight", weight);
  check(weight.value.rank() == 2 && weight.shape()[1] == x.shape()[-1] && weight.shape()[0] > 0,
        "[{}] weight has shape {}, expected (classes, {}), at least one class: {} is the last dimension of x {}",
        kOperator, to_string(weight.shape()), x.shape()[-1], x.shape()[-1], to_string(x.shape()));
  check_dtype(kOperator, "weight", weight, "x", x);
  check_targets(kOperator, targets, x.shape().part(0, x.value.rank() - 1), "x " + to_string(x.shape()), options.loss);
  check(options.loss.reduction != Reduction::none, "[{}] reduction is none, expected mean or sum", kOperator);
  check(options.chunk > 0, "[{}] chunk is {}, expected at least one row", kOperator, options.chunk);
}

}  // namespace

Variable linear_cross_entropy(Tape& tape, const Variable& x, const Variable& weight, const Tensor& targets,
                              const LinearCrossEntropyOptions& options) {
  Context& context = tape.context();
  check_inputs(x, weight, targets, options);
  const bool recorded = tape.records({&x, &weight});
  const DType exact = accumulate_type(x.dtype());
  const int64_t rows = targets.numel();
  const Tensor x_rows = as_matrix(x.value, rows), row_targets = targets.reshape({rows});
  Variable loss = tape.output(Tensor::empty(context, {}, exact), recorded);
  const Tensor maxima = Tensor::empty(context, {rows}, exact), rests = Tensor::empty(context, {rows}, exact);
  const Tensor count = Tensor::empty(context, {1}, exact);
  {
    const MemoryScope scope(context, MemoryCategory::workspace);
    const Tensor row_losses = Tensor::empty(context, {rows}, exact);
    CrossEntropyOptions of_rows = options.loss;
    of_rows.reduction = Reduction::none;
    for_each_part(context, x_rows, weight.value, options.chunk, [&](const auto& part, const Tensor& logits) {
      kernels::cross_entropy_forward(context, {.logits = rows_view(logits),
                                               .targets = vector_view(part(row_targets)),
                                               .loss = {},
                                               .maxima = vector_view(part(maxima)),
                                               .rests = vector_view(part(rests)),
                                               .row_losses = vector_view(part(row_losses)),
                                               .count = {},
                                               .options = of_rows});
    });
    kernels::reduce_losses(context, {vector_view(row_losses), vector_view(row_targets), vector_view(loss.value),
                                     vector_view(count), options.loss});
  }
  if (!recorded) return loss;

  tape.record(LinearCrossEntropyNode{.options = options,
                                     .x = x.slot,
                                     .weight = weight.slot,
                                     .loss = loss.slot,
                                     .saved_x = x_rows,
                                     .saved_weight = weight.value,
                                     .targets = row_targets,
                                     .maxima = maxima,
                                     .rests = rests,
                                     .count = count},
              {x, weight}, {loss});
  return loss;
}

}  // namespace heddle
