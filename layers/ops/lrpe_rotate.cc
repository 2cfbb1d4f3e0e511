#include "layers/ops/lrpe_rotate.h"

#include <cstdint>
#include <string_view>

#include "core/runtime/error.h"
#include "layers/ops/lrpe.h"

namespace heddle {
namespace {

struct Rotate {
  static constexpr std::string_view kName = "lrpe_rotate";
  static constexpr bool kKeepsDim = true;
  using Options = kernels::LrpeRotateOptions;
  using ForwardArgs = kernels::LrpeRotateForwardArgs;
  using BackwardArgs = kernels::LrpeRotateBackwardArgs;
  static void forward(Context& context, const ForwardArgs& args) { kernels::lrpe_rotate_forward(context, args); }
  static void backward(Context& context, const BackwardArgs& args) { kernels::lrpe_rotate_backward(context, args); }
};

void check_lrpe_rotate(const Variable& x, const Variable& theta, const LrpeRotateOptions& options) {
  const kernels::HeadsView view = check_lrpe_x(Rotate::kName, x, options.layout, options.act);
  check_lrpe_offset(Rotate::kName, options.offset, view.length);
  check(view.dim % 2 == 0, "[lrpe_rotate] x has shape {}, expected an even last dimension", x.shape());
  check_lrpe_theta(Rotate::kName, x, theta);
  const int64_t heads = theta.shape()[0], angles = theta.shape()[1];
  check((heads == 1 || heads == view.heads) && angles >= 1 && angles <= view.dim / 2,
        "[lrpe_rotate] theta has shape {}, expected (1 or {}, at most {}): the heads and half the features of x {}",
        theta.shape(), view.heads, view.dim / 2, x.shape());
}

}  // namespace

Variable lrpe_rotate(Tape& tape, const Variable& x, const Variable& theta, const LrpeRotateOptions& options) {
  check_lrpe_rotate(x, theta, options);
  check_tokens_before(Rotate::kName, tape, options.tokens_before, options.softmax);
  return apply_lrpe<Rotate>(tape, x, theta, x.shape(), options.layout, options, options.tokens_before);
}

}  // namespace heddle
