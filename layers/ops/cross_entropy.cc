#include "layers/ops/cross_entropy.h"

#include <cmath>
#include <cstdint>

#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

struct CrossEntropyNode {
  CrossEntropyOptions options;
  Slot logits, loss;
  Tensor saved_logits, targets, maxima, rests, count;

  void backward(Tape& tape) {
    const Tensor d_loss = tape.take_gradient(loss);
    kernels::CrossEntropyBackwardArgs args;
    args.logits = rows_view(saved_logits);
    args.targets = vector_view(targets);
    args.maxima = vector_view(maxima);
    args.rests = vector_view(rests);
    args.count = vector_view(count);
    args.d_loss = vector_view(d_loss);
    args.options = options;
    const bool in_place = saved_logits.is_unique() && saved_logits.is_contiguous() && tape.can_share_gradient(logits);
    KernelDestinations destinations(tape);
    args.d_logits =
        in_place ? kernels::RowsDestination{args.logits} : destinations.rows_of(logits, saved_logits.dtype());
    kernels::cross_entropy_backward(tape.context(), args);
    destinations.finish();
    if (in_place) pass_gradient(tape, logits, saved_logits);
  }
};

}  // namespace

void check_targets(std::string_view layer, const Tape& tape, const Tensor& targets, std::string_view name,
                   const Variable& x, const CrossEntropyOptions& options) {
  const Shape rows = x.shape().part(0, x.value.rank() - 1);
  check(targets.dtype() == DType::int32 && targets.shape() == rows && targets.is_contiguous(),
        "[{}] targets are {} {}, expected dense int32 {}: one for each row of {} {}", layer,
        heddle::name(targets.dtype()), targets.shape(), rows, name, x.shape());
  tape.check_device(targets, fmt::format("[{}] the tensor targets", layer));
  check(options.label_smoothing >= 0.0 && options.label_smoothing <= 1.0,
        "[{}] label_smoothing is {}, expected a number from 0 to 1", layer, options.label_smoothing);
  check(options.z_loss >= 0.0 && std::isfinite(options.z_loss), "[{}] z_loss is {}, expected a number of at least 0",
        layer, options.z_loss);
}

Variable cross_entropy(Tape& tape, const Variable& logits, const Tensor& targets, const CrossEntropyOptions& options) {
  check_rows("cross_entropy", "logits", logits);
  check(logits.shape()[-1] > 0, "[cross_entropy] logits have shape {}, expected at least one class", logits.shape());
  Context& context = tape.context();
  check_targets("cross_entropy", tape, targets, "logits", logits, options);
  const bool recorded = tape.records("cross_entropy", {{"logits", logits}});
  const bool reduces = options.reduction != Reduction::none;
  const DType exact = accumulate_type(logits.dtype());
  const int64_t rows = targets.numel();
  Variable loss = tape.output(Tensor::empty(context, reduces ? Shape{} : targets.shape(), exact), recorded);
  const Tensor maxima = Tensor::empty(context, {rows}, exact), rests = Tensor::empty(context, {rows}, exact);
  const Tensor count = reduces ? Tensor::empty(context, {1}, exact) : Tensor{};
  {
    const MemoryScope scope(context, MemoryCategory::workspace);
    const Tensor row_losses = reduces ? Tensor::empty(context, {rows}, exact) : loss.value;
    kernels::cross_entropy_forward(context, {.logits = rows_view(logits.value),
                                             .targets = vector_view(targets),
                                             .loss = reduces ? vector_view(loss.value) : kernels::VectorView{},
                                             .maxima = vector_view(maxima),
                                             .rests = vector_view(rests),
                                             .row_losses = vector_view(row_losses),
                                             .count = vector_view(count),
                                             .d_logits = {},
                                             .options = options});
  }
  if (!recorded) return loss;

  tape.record(CrossEntropyNode{.options = options,
                               .logits = logits.slot,
                               .loss = loss.slot,
                               .saved_logits = logits.value,
                               .targets = targets,
                               .maxima = maxima,
                               .rests = rests,
                               .count = count},
              {logits}, {loss});
  return loss;
}

}  // namespace heddle
