// What both position encodings have in common as operators: checks and the node on the tape.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "core/autograd/tape.h"
#include "kernels/position/lrpe.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {

using kernels::Activation;
using kernels::Layout;
using kernels::Softmax;

// The view of x, (B, N, H, D) or (B, H, N, D) by `layout`, or (B, N, D): one head. Throws Error when x is none of them,
// or when the kernels do not compute `act`.
kernels::HeadsView check_lrpe_x(std::string_view op, const Variable& x, Layout layout, Activation act);
// theta is a matrix of x's dtype or of the accumulate type.
void check_lrpe_theta(std::string_view op, const Variable& x, const Variable& theta);
// Positions, offset to offset + tokens - 1, are integers that double holds.
void check_lrpe_offset(std::string_view op, int64_t offset, int64_t tokens);

// Throws Error unless `tokens_before` is undefined or what the options of the encodings say of it: one int32, beside a
// tape that does not record and a softmax that does not run over the sequence.
void check_tokens_before(std::string_view op, const Tape& tape, const Tensor& tokens_before, Softmax softmax);

// `Encoding` names one of the two: kName, Options, ForwardArgs, BackwardArgs, forward(), backward() and kKeepsDim,
// whether y has the features of x.
template <class Encoding>
struct LrpeNode {
  typename Encoding::Options options;
  Layout layout;
  Slot x, theta, y;
  Tensor saved_x;  // undefined when backward does not need it
  Tensor saved_theta, maximum, sum;

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    typename Encoding::BackwardArgs args;
    args.x = kernels::heads_view(saved_x, layout);
    args.d_y = kernels::heads_view(d_y, layout);
    args.theta = kernels::rows_view(saved_theta);
    args.maximum = kernels::vector_view(maximum);
    args.sum = kernels::vector_view(sum);
    args.options = options;
    KernelDestinations destinations(tape);
    args.d_theta = rows_destination(destinations.of(theta));
    Tensor partials, dots;
    {
      const MemoryScope scope(context, MemoryCategory::workspace);
      if (args.d_theta) {
        const int64_t splits = kernels::lrpe_theta_partials(args.d_y.length);
        partials = Tensor::empty(context, {splits, saved_theta.numel()}, accumulate_type(d_y.dtype()));
        args.partials = kernels::rows_view(partials);
      }
      if (options.softmax == Softmax::sequence) {
        dots = Tensor::empty(context, maximum.shape(), maximum.dtype());
        args.dots = kernels::vector_view(dots);
      }
    }
    // d_theta needs d_y as it came.
    const bool in_place = Encoding::kKeepsDim && !args.d_theta && d_y.is_unique() && tape.can_share_gradient(x);
    args.d_x =
        in_place ? kernels::HeadsDestination{args.d_y} : heads_destination(destinations.of(x, d_y.dtype()), layout);
    Encoding::backward(context, args);
    destinations.finish();
    if (in_place) pass_gradient(tape, x, d_y);
  }
};

// Forward, and the node that leads back. The arguments have been checked.
template <class Encoding>
Variable apply_lrpe(Tape& tape, const Variable& x, const Variable& theta, const Shape& y_shape, Layout layout,
                    const typename Encoding::Options& options, const Tensor& tokens_before) {
  Context& context = tape.context();
  const bool recorded = tape.records(Encoding::kName, {{"x", x}, {"theta", theta}});
  const kernels::HeadsView view = kernels::heads_view(x.value, layout);
  Variable y = tape.output(Tensor::empty(context, y_shape, x.dtype()), recorded);
  Tensor maximum, sum;
  if (options.softmax == Softmax::sequence) {
    maximum = Tensor::empty(context, {view.batch, view.heads, view.dim}, accumulate_type(x.dtype()));
    sum = Tensor::empty(context, maximum.shape(), maximum.dtype());
  }
  Encoding::forward(context, {.x = view,
                              .y = kernels::heads_view(y.value, layout),
                              .theta = kernels::rows_view(theta.value),
                              .maximum = kernels::vector_view(maximum),
                              .sum = kernels::vector_view(sum),
                              .options = options,
                              .tokens_before = tokens_before.defined() ? tokens_before.data<int32_t>() : nullptr});
  if (!recorded) return y;

  const bool has_act = options.act != Activation::none || options.softmax != Softmax::none;
  tape.record(LrpeNode<Encoding>{.options = options,
                                 .layout = layout,
                                 .x = x.slot,
                                 .theta = theta.slot,
                                 .y = y.slot,
                                 .saved_x = has_act || theta.requires_grad() ? x.value : Tensor{},
                                 .saved_theta = theta.value,
                                 .maximum = maximum,
                                 .sum = sum},
              {x, theta}, {y});
  return y;
}

}  // namespace heddle
