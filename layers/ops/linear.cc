#include "layers/ops/linear.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>

#include "kernels/dense/gemm.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::Transpose;
using kernels::vector_view;

void check_linear(const Variable& x, const Variable& weight, const Variable& bias) {
  check_rows("linear", "x", x);
  check_rows("linear", "weight", weight);
  check(weight.value.rank() == 2 && weight.shape()[1] == x.shape()[-1],
        "[linear] weight has shape {}, expected (out, {}): the last dimension of x {}", weight.shape(), x.shape()[-1],
        x.shape());
  check_dtype("linear", "weight", weight, "x", x);
  if (!bias.defined()) return;
  const Shape expected{weight.shape()[0]};
  check(bias.shape() == expected, "[linear] bias has shape {}, expected {}: the first dimension of weight {}",
        bias.shape(), expected, weight.shape());
  check_dtype("linear", "bias", bias, "x", x);
  check_dense("linear", "bias", bias);
}

// Weights that are adjacent in memory, or the memory of their gradients, as one matrix, and their features of y.
struct WeightRun {
  int64_t begin, end;
  kernels::RowsDestination weights;
};

// One run for all that are adjacent and have one mode; none for those that are not given.
std::vector<WeightRun> runs_of(const std::vector<kernels::RowsDestination>& weights,
                               const std::vector<int64_t>& features) {
  std::vector<WeightRun> runs;
  int64_t begin = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t end = begin + features[i];
    const kernels::RowsView& next = weights[i].view;
    if (next) {
      const auto goes_on = [&](const WeightRun& run) {
        const kernels::RowsView& view = run.weights.view;
        const auto bytes = view.rows * view.cols * static_cast<int64_t>(size_of(view.dtype));
        return run.end == begin && run.weights.mode == weights[i].mode && view.dtype == next.dtype &&
               view.row_stride == view.cols && next.row_stride == next.cols &&
               static_cast<std::byte*>(view.data) + bytes == next.data;
      };
      if (!runs.empty() && goes_on(runs.back())) {
        runs.back().end = end;
        runs.back().weights.view.rows += next.rows;
      } else {
        runs.push_back({begin, end, weights[i]});
      }
    }
    begin = end;
  }
  return runs;
}

std::vector<WeightRun> runs_of(const std::vector<Tensor>& weights, const std::vector<int64_t>& features) {
  std::vector<kernels::RowsDestination> views;
  for (const Tensor& weight : weights) views.push_back({rows_view(weight)});
  return runs_of(views, features);
}

kernels::RowsView features_of(const Tensor& y, const WeightRun& run) {
  return rows_view(y.slice(-1, run.begin, run.end));
}

struct LinearNode {
  Slot x, bias, y;
  std::vector<Slot> weights;
  std::vector<int64_t> features;      // of y, for each weight
  Tensor saved_x;                     // for the gradients of the weights
  std::vector<Tensor> saved_weights;  // for d_x

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    if (const GradientDestination d_bias = tape.destination(bias)) {
      kernels::column_sum(context, {rows_view(d_y), vector_destination(d_bias)});
    }
    std::vector<kernels::RowsDestination> d_weights;
    for (const Slot weight : weights) d_weights.push_back(rows_destination(tape.destination(weight)));
    for (const WeightRun& run : runs_of(d_weights, features)) {
      kernels::gemm(context, {.a = features_of(d_y, run),
                              .b = rows_view(saved_x),
                              .transpose_a = Transpose::yes,
                              .bias = {},
                              .c = run.weights});
    }
    saved_x = {};  // nothing else may hold it: then d_x can have its memory
    KernelDestinations destinations(tape);
    kernels::RowsDestination sum = destinations.rows_of(x);
    if (!sum) return;
    for (const WeightRun& run : runs_of(saved_weights, features)) {
      kernels::gemm(context, {.a = features_of(d_y, run), .b = run.weights.view, .bias = {}, .c = sum});
      sum.mode = GradientMode::accumulate;
    }
    destinations.finish();
  }
};

// y (..., all features). `bias` stands beside one weight only.
Variable apply(Tape& tape, const Variable& x, const std::vector<Variable>& weights, const Variable& bias) {
  std::vector<int64_t> features;
  std::vector<Tensor> values;
  std::vector<Slot> slots;
  bool any_weight = false;  // whether one of them is differentiated
  for (const Variable& weight : weights) {
    check_linear(x, weight, bias);
    features.push_back(weight.shape()[0]);
    values.push_back(weight.value);
    slots.push_back(weight.slot);
    any_weight = tape.records("linear", {{"weight", weight}}) || any_weight;
  }
  const bool recorded = tape.records("linear", {{"x", x}, {"bias", bias}}) || any_weight;
  Shape shape = x.shape();
  shape[-1] = std::accumulate(features.begin(), features.end(), int64_t{0});
  Variable y = tape.output(Tensor::empty(tape.context(), shape, x.dtype()), recorded);
  for (const WeightRun& run : runs_of(values, features)) {
    kernels::gemm(tape.context(), {.a = rows_view(x.value),
                                   .b = run.weights.view,
                                   .transpose_b = Transpose::yes,
                                   .bias = vector_view(bias.value),
                                   .c = {features_of(y.value, run)}});
  }
  if (!recorded) return y;

  std::vector<Slot> inputs = slots;
  inputs.insert(inputs.begin(), x.slot);
  inputs.push_back(bias.slot);
  tape.record(LinearNode{.x = x.slot,
                         .bias = bias.slot,
                         .y = y.slot,
                         .weights = std::move(slots),
                         .features = std::move(features),
                         .saved_x = any_weight ? x.value : Tensor{},
                         .saved_weights = x.requires_grad() ? std::move(values) : std::vector<Tensor>{}},
              std::move(inputs), {y});
  return y;
}

}  // namespace

Variable linear(Tape& tape, const Variable& x, const Variable& weight, const Variable& bias) {
  return apply(tape, x, {weight}, bias);
}

std::vector<Variable> linear(Tape& tape, const Variable& x, const std::vector<Variable>& weights) {
  check(!weights.empty(), "[linear] there is no weight, expected at least one");
  std::vector<int64_t> features;
  const Variable y = apply(tape, x, weights, {});
  for (const Variable& weight : weights) features.push_back(weight.shape()[0]);
  return split_last(tape, y, features);
}

}  // namespace heddle
