// Backward of the norm family: the dispatch on the storage type, and the kernels for float32 and float64. Their outputs
// are listed in norm_backward.h.
#include "kernels/norm/cuda/norm_backward.h"
#include "kernels/norm/cuda/norm_full_precision.h"

namespace heddle::kernels::cuda {

extern template void launch_backward<bf16>(Context&, const NormBackwardArgs&);
extern template void launch_backward<fp16>(Context&, const NormBackwardArgs&);

void norm_backward(Context& context, const NormBackwardArgs& args) {
  if (parameter_dtype(args) != args.x.dtype) return norm_backward_full_precision(context, args);
  visit_floating(args.x.dtype, [&](auto type) { launch_backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
