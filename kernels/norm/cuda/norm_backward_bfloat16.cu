// Backward of the norm family: the kernels for bfloat16. Their outputs are listed in norm_backward.h.
#include "kernels/norm/cuda/norm_backward.h"

namespace heddle::kernels::cuda {

template void launch_backward<bf16>(Context&, const NormBackwardArgs&);

}  // namespace heddle::kernels::cuda
