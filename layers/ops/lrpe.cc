#include "layers/ops/lrpe.h"

#include <algorithm>
#include <string_view>

#include "core/runtime/error.h"
#include "layers/ops/check.h"

namespace heddle {

kernels::HeadsView check_lrpe_x(std::string_view op, const Variable& x, Layout layout, Activation act) {
  check(x.defined(), "[{}] x is missing", op);
  const char* expected = layout == Layout::bnhd ? "(B, N, H, D) or (B, N, D)" : "(B, H, N, D) or (B, N, D)";
  check(is_floating(x.dtype()) && (x.value.rank() == 3 || x.value.rank() == 4),
        "[{}] x is {} {}, expected real numbers {}", op, name(x.dtype()), x.shape(), expected);
  check(x.shape()[-1] > 0, "[{}] x has shape {}, expected at least one feature", op, x.shape());
  check_fused_activation(op, "act", act);
  return view_of(op, "x", [&] { return kernels::heads_view(x.value, layout); });
}

void check_lrpe_theta(std::string_view op, const Variable& x, const Variable& theta) {
  check(theta.defined(), "[{}] theta is missing", op);
  check(theta.value.rank() == 2, "[{}] theta has shape {}, expected (H, E) or (1, E)", op, theta.shape());
  check_dtype_or_wider(op, "theta", theta, x);
  view_of(op, "theta", [&] { return kernels::rows_view(theta.value); });
}

void check_lrpe_offset(std::string_view op, int64_t offset, int64_t tokens) {
  constexpr int64_t kLargest = int64_t{1} << 53;
  const int64_t last = kLargest - std::max<int64_t>(tokens - 1, 0);
  check(offset >= -kLargest && offset <= last,
        "[{}] offset is {}, expected {} to {}: the positions of {} tokens are integers of at most 2^53", op, offset,
        -kLargest, last, tokens);
}

void check_tokens_before(std::string_view op, const Tape& tape, const Tensor& tokens_before, Softmax softmax) {
  if (!tokens_before.defined()) return;
  check(tokens_before.dtype() == DType::int32 && tokens_before.numel() == 1,
        "[{}] tokens_before is {} {}, expected one int32", op, name(tokens_before.dtype()), tokens_before.shape());
  tape.check_device(tokens_before, fmt::format("[{}] the tensor tokens_before", op));
  check(tape.mode() != Tape::Mode::record,
        "[{}] found tokens_before on a tape that records, expected a tape for inference", op);
  check(softmax != Softmax::sequence,
        "[{}] found tokens_before beside a softmax over the sequence, expected one of them", op);
}

}  // namespace heddle
