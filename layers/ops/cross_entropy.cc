#include "layers/ops/cross_entropy.h"

#include "core/config/config_node.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

void check_cross_entropy(const Variable& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  check_rows("cross_entropy", "logits", logits);
  check(logits.shape()[-1] > 0, "[cross_entropy] logits have shape {}, expected at least one class",
        to_string(logits.shape()));
  const Shape expected = logits.shape().part(0, logits.value.rank() - 1);
  check(targets.dtype() == DType::int32 && targets.shape() == expected && targets.is_contiguous(),
        "[cross_entropy] targets are {} {}, expected dense int32 {}: one for each row of logits {}",
        name(targets.dtype()), to_string(targets.shape()), to_string(expected), to_string(logits.shape()));
  check(options.label_smoothing >= 0.0 && options.label_smoothing <= 1.0,
        "[cross_entropy] label_smoothing is {}, expected a number from 0 to 1", options.label_smoothing);
}

struct CrossEntropyNode : Node {
  CrossEntropyOptions options;
  Slot logits, loss;
  Tensor saved_logits, targets, log_sum_exp, count;

  std::string_view name() const override { return "cross_entropy"; }

  void backward(Tape& tape) override {
    const Tensor d_loss = tape.take_gradient(loss);
    kernels::CrossEntropyBackwardArgs args;
    args.logits = rows_view(saved_logits);
    args.targets = vector_view(targets);
    args.log_sum_exp = vector_view(log_sum_exp);
    args.count = vector_view(count);
    args.d_loss = vector_view(d_loss);
    args.options = options;
    const bool in_place = saved_logits.is_unique() && saved_logits.is_contiguous() && tape.can_share_gradient(logits);
    args.d_logits = in_place ? kernels::RowsDestination{args.logits} : rows_destination(tape.destination(logits));
    kernels::cross_entropy_backward(tape.context(), args);
    if (in_place) pass_gradient(tape, logits, saved_logits);
  }
};

}  // namespace

Variable cross_entropy(Tape& tape, const Variable& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  check_cross_entropy(logits, targets, options);
  Context& context = tape.context();
  const bool recorded = tape.records({&logits});
  const DType exact = accumulate_type(logits.dtype());
  const int64_t rows = targets.numel();
  Variable loss = tape.output(Tensor::empty(context, {}, exact), recorded);
  const Tensor log_sum_exp = Tensor::empty(context, {rows}, exact);
  const Tensor count = Tensor::empty(context, {1}, exact);
  {
    const MemoryScope scope(context, MemoryCategory::workspace);
    const Tensor row_losses = Tensor::empty(context, {rows}, exact);
    kernels::cross_entropy_forward(context, {.logits = rows_view(logits.value),
                                             .targets = vector_view(targets),
                                             .loss = vector_view(loss.value),
                                             .log_sum_exp = vector_view(log_sum_exp),
                                             .row_losses = vector_view(row_losses),
                                             .count = vector_view(count),
                                             .options = options});
  }
  if (!recorded) return loss;

  auto node = std::make_unique<CrossEntropyNode>();
  node->options = options;
  node->logits = logits.slot;
  node->loss = loss.slot;
  node->saved_logits = logits.value;
  node->targets = targets;
  node->log_sum_exp = log_sum_exp;
  node->count = count;
  tape.record(std::move(node), {loss.slot});
  return loss;
}

NamedVariables apply_cross_entropy(Tape& tape, const ConfigNode& node, const NamedVariables& inputs) {
  CrossEntropyOptions options;
  options.ignore_index = node.get<int32_t>("ignore_index", options.ignore_index);
  options.label_smoothing = node.get<double>("label_smoothing", options.label_smoothing, Range::between(0.0, 1.0));
  node.finish();
  return {{"loss", cross_entropy(tape, inputs.at("logits"), inputs.at("targets").value, options)}};
}

}  // namespace heddle
