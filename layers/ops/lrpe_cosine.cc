#include "layers/ops/lrpe_cosine.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/runtime/checked.h"
#include "core/runtime/error.h"
#include "layers/ops/lrpe.h"

namespace heddle {
namespace {

constexpr int kMostAxes = kernels::LrpeCosineOptions::kMostAxes;

struct Cosine {
  static constexpr std::string_view kName = "lrpe_cosine";
  static constexpr bool kKeepsDim = false;
  using Options = kernels::LrpeCosineOptions;
  using ForwardArgs = kernels::LrpeCosineForwardArgs;
  using BackwardArgs = kernels::LrpeCosineBackwardArgs;
  static void forward(Context& context, const ForwardArgs& args) { kernels::lrpe_cosine_forward(context, args); }
  static void backward(Context& context, const BackwardArgs& args) { kernels::lrpe_cosine_backward(context, args); }
};

// What the kernels are told of the grid that the `length` tokens of x lie on.
kernels::LrpeCosineOptions check_grid(const Variable& x, int64_t length, const LrpeCosineOptions& options) {
  const int64_t extra = options.extra_tokens;
  kernels::LrpeCosineOptions grid;
  grid.act = options.act;
  grid.softmax = options.softmax;
  grid.extra_tokens = extra;
  grid.offset = options.offset;
  if (options.tokens_before.defined()) {  // how many tokens are extra is known on the device alone
    check(extra >= 0, "[lrpe_cosine] extra_tokens is {}, expected at least 0", extra);
    check(options.shape.rank() == 0, "[lrpe_cosine] found tokens_before beside shape {}, expected one of them",
          options.shape);
    check_lrpe_offset(Cosine::kName, options.offset, length);
    return grid;
  }
  check(extra >= 0 && extra <= length, "[lrpe_cosine] extra_tokens is {}, expected 0 to {}: the tokens of x {}", extra,
        length, x.shape());
  const Shape shape = options.shape.rank() > 0 ? options.shape : Shape{length - extra};
  check(shape.rank() <= kMostAxes && std::all_of(shape.begin(), shape.end(), [](int64_t n) { return n >= 0; }),
        "[lrpe_cosine] shape is {}, expected 1 to {} extents of at least 0", shape, kMostAxes);
  check(checked_product(std::span(shape.begin(), shape.end())) == length - extra,
        "[lrpe_cosine] shape {} and {} extra tokens do not make {} tokens, those of x {}", shape, extra, length,
        x.shape());
  check(shape.rank() == 1 || options.offset == 0, "[lrpe_cosine] offset is {}, expected 0: shape {} has {} axes",
        options.offset, shape, shape.rank());
  check_lrpe_offset(Cosine::kName, options.offset, length - extra);
  grid.axes = shape.rank();
  std::copy(shape.begin(), shape.end(), grid.extents);
  return grid;
}

kernels::LrpeCosineOptions check_lrpe_cosine(const Variable& x, const Variable& theta,
                                             const LrpeCosineOptions& options) {
  const kernels::HeadsView view = check_lrpe_x(Cosine::kName, x, options.layout, options.act);
  const kernels::LrpeCosineOptions grid = check_grid(x, view.length, options);
  check_lrpe_theta(Cosine::kName, x, theta);
  const int64_t heads = theta.shape()[0], angles = theta.shape()[1], least = (view.dim + grid.axes - 1) / grid.axes;
  check(
      (heads == 1 || heads == view.heads) && angles >= least,
      "[lrpe_cosine] theta has shape {}, expected (1 or {}, at least {}): the heads and the features of x {} on {} {}",
      theta.shape(), view.heads, least, x.shape(), grid.axes, grid.axes == 1 ? "axis" : "axes");
  return grid;
}

}  // namespace

Variable lrpe_cosine(Tape& tape, const Variable& x, const Variable& theta, const LrpeCosineOptions& options) {
  const kernels::LrpeCosineOptions grid = check_lrpe_cosine(x, theta, options);
  check_tokens_before(Cosine::kName, tape, options.tokens_before, options.softmax);
  Shape y_shape = x.shape();
  y_shape[-1] *= 2;
  return apply_lrpe<Cosine>(tape, x, theta, y_shape, options.layout, grid, options.tokens_before);
}

}  // namespace heddle
