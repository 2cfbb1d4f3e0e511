// What several layers demand of their inputs. Each check throws Error naming the layer and the argument.
#pragma once

#include <string>
#include <string_view>

#include "core/autograd/tape.h"
#include "core/runtime/error.h"
#include "kernels/common/activation.h"
#include "kernels/common/views.h"

namespace heddle {

// What `make` returns, the view of an argument that kernels see. When there is none, the error names layer and
// argument.
template <class Make>
auto view_of(std::string_view layer, std::string_view what, const Make& make) {
  try {
    return make();
  } catch (const Error& error) {
    fail("[{}] {}: {}", layer, what, error.what());
  }
}

// Real numbers (..., dim) that can be seen as rows at even distances, as a slice of the last dimension can.
inline void check_rows(std::string_view layer, std::string_view what, const Variable& x) {
  check(x.defined(), "[{}] {} is missing", layer, what);
  check(is_floating(x.dtype()) && x.value.rank() >= 1, "[{}] {} is {} {}, expected real numbers (..., dim)", layer,
        what, name(x.dtype()), x.shape());
  view_of(layer, what, [&] { return kernels::rows_view(x.value); });
}

// Real numbers (batch, length, heads, dim), at least one feature, which lie side by side.
inline void check_heads(std::string_view layer, std::string_view what, const Variable& x) {
  check(x.defined(), "[{}] {} is missing", layer, what);
  check(is_floating(x.dtype()) && x.value.rank() == 4,
        "[{}] {} is {} {}, expected real numbers (batch, length, heads, dim)", layer, what, name(x.dtype()), x.shape());
  check(x.shape()[3] > 0, "[{}] {} has shape {}, expected at least one feature", layer, what, x.shape());
  view_of(layer, what, [&] { return kernels::heads_view(x.value); });
}

// Elements that lie side by side in memory, the last dimension fastest.
inline void check_dense(std::string_view layer, std::string_view what, const Variable& x) {
  check(x.value.is_contiguous(), "[{}] {} is not contiguous: {} has strides {}, expected {}", layer, what, x.shape(),
        x.value.strides(), contiguous_strides(x.shape()));
}

// Throws Error unless the fused kernels compute act.
inline void check_fused_activation(std::string_view layer, std::string_view what, kernels::Activation act) {
  if (kernels::is_fused_activation(act)) return;
  std::string expected;
  for (const kernels::ActivationName& known : kernels::kActivations) {
    expected += fmt::format("{}{}", expected.empty() ? "" : ", ", known.name);
  }
  const std::string_view found = kernels::name(act);
  fail("[{}] {} is {}, expected one of {}", layer, what,
       found.empty() ? std::to_string(static_cast<int>(act)) : std::string(found), expected);
}

// `found` has that dtype and shape, for the reason that `because` names.
inline void check_tensor(std::string_view layer, std::string_view what, const Variable& found, DType dtype,
                         const Shape& shape, std::string_view because) {
  check(found.shape() == shape && found.dtype() == dtype, "[{}] {} is {} {}, expected {} {}: {}", layer, what,
        name(found.dtype()), found.shape(), name(dtype), shape, because);
}

// `found` has the dtype of the layer's input `of`.
inline void check_dtype(std::string_view layer, std::string_view what, const Variable& found, std::string_view of,
                        const Variable& input) {
  check(found.dtype() == input.dtype(), "[{}] {} is {}, expected {}: the dtype of {}", layer, what, name(found.dtype()),
        name(input.dtype()), of);
}

// `found` has the dtype of x, or the one in which sums of such numbers are taken.
inline void check_dtype_or_wider(std::string_view layer, std::string_view what, const Variable& found,
                                 const Variable& x) {
  const DType same = x.dtype(), wide = accumulate_type(same);
  check(found.dtype() == wide || found.dtype() == same, "[{}] {} is {}, expected {}{}{}: x is {}", layer, what,
        name(found.dtype()), wide == same ? "" : name(same), wide == same ? "" : " or ", name(wide), name(same));
}

}  // namespace heddle
