// Backward of the norm family for float16.
#include "kernels/norm/cuda/norm_backward.h"

namespace heddle::kernels::cuda {

template void launch_backward<fp16>(Context&, const NormBackwardArgs&);

}  // namespace heddle::kernels::cuda
