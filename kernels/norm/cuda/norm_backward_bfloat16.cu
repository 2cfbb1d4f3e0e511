// Backward of the norm family for bfloat16.
#include "kernels/norm/cuda/norm_backward.h"

namespace heddle::kernels::cuda {

template void launch_backward<bf16>(Context&, const NormBackwardArgs&);

}  // namespace heddle::kernels::cuda
