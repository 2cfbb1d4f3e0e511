#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup.h"

namespace heddle::kernels::cuda::detail {

template int64_t launch_warpgroups<64, 2, PartialOut::added>(Context&, const ScanArgs<float>&);
template int64_t launch_warpgroups<128, 2, PartialOut::written>(Context&, const ScanArgs<float>&);
template int64_t launch_warpgroups<128, 2, PartialOut::added>(Context&, const ScanArgs<float>&);

}  // namespace heddle::kernels::cuda::detail
