#include <cstdint>

#include "kernels/attention/cuda/scan_float32_warpgroup.h"

namespace heddle::kernels::cuda::detail {

template void launch_float32<80, 2>(Context&, const ScanArgs<float>&);

}  // namespace heddle::kernels::cuda::detail
