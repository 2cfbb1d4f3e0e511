#include "layers/ops/lrpe.h"

#include <string>

#include "core/runtime/error.h"

namespace heddle {

kernels::HeadsView check_lrpe_x(std::string_view op, const Variable& x, Layout layout) {
  const char* expected = layout == Layout::bnhd ? "(B, N, H, D) or (B, N, D)" : "(B, H, N, D) or (B, N, D)";
  check(x.defined() && is_floating(x.dtype()) && (x.value.rank() == 3 || x.value.rank() == 4) && x.shape()[-1] > 0,
        "[{}] x has shape {}, expected real numbers {}", op, to_string(x.shape()), expected);
  return kernels::heads_view(x.value, layout);
}

void check_lrpe_theta(std::string_view op, const Variable& x, const Variable& theta) {
  check(theta.defined() && theta.value.rank() == 2, "[{}] theta has shape {}, expected (H, E) or (1, E)", op,
        to_string(theta.shape()));
  const DType wide = accumulate_type(x.dtype());
  const std::string same = wide == x.dtype() ? "" : fmt::format("{} or ", name(x.dtype()));
  check(theta.dtype() == wide || theta.dtype() == x.dtype(), "[{}] theta is {}, expected {}{}: x is {}", op,
        name(theta.dtype()), same, name(wide), name(x.dtype()));
}

void check_lrpe_offset(std::string_view op, int64_t offset) {
  constexpr int64_t kLargest = int64_t{1} << 53;
  check(offset >= -kLargest && offset <= kLargest, "[{}] offset is {}, expected {} to {}", op, offset, -kLargest,
        kLargest);
}

}  // namespace heddle
