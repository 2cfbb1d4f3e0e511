// Backward of the norm family: the kernels for float16. Their outputs are listed in norm_backward.h.
#include "kernels/norm/cuda/norm_backward.h"

namespace heddle::kernels::cuda {

template void launch_backward<fp16>(Context&, const NormBackwardArgs&);

}  // namespace heddle::kernels::cuda
