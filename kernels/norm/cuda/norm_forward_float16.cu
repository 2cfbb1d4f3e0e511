// Forward of the norm family: the kernels for float16. Their outputs are listed in norm_forward.h.
#include "kernels/norm/cuda/norm_forward.h"

namespace heddle::kernels::cuda {

template void launch_forward<fp16>(Context&, const NormForwardArgs&);

}  // namespace heddle::kernels::cuda
