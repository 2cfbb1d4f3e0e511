#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup.h"

namespace heddle::kernels::cuda::detail {

template int64_t launch_warpgroups<64, 1, PartialOut::none>(Context&, const ScanArgs<float>&);

}  // namespace heddle::kernels::cuda::detail
