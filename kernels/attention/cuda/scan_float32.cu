#include <cstdint>

#include "kernels/attention/cuda/scan_tensor.h"

namespace heddle::kernels::cuda {

template int64_t scan_on_tensor_cores<float>(Context&, const ScanArgs<float>&);

}  // namespace heddle::kernels::cuda
