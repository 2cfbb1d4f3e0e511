// Forward of the norm family: the dispatch on the storage type, and the kernels for float32 and float64. Their outputs
// are listed in norm_forward.h.
#include "kernels/norm/cuda/norm_forward.h"
#include "kernels/norm/cuda/norm_full_precision.h"

namespace heddle::kernels::cuda {

extern template void launch_forward<bf16>(Context&, const NormForwardArgs&);
extern template void launch_forward<fp16>(Context&, const NormForwardArgs&);

void norm_forward(Context& context, const NormForwardArgs& args) {
  if (args.x.rows == 0) return;
  if (parameter_dtype(args) != args.x.dtype) return norm_forward_full_precision(context, args);
  visit_floating(args.x.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
