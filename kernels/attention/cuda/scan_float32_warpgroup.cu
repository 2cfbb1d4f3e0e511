#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/scan_float32_warpgroup.h"
#include "kernels/attention/cuda/scan_parts.h"

namespace heddle::kernels::cuda {
int64_t scan_floats_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || args.query.length < kShortestOnWarpgroups) return 0;
  if (std::max(keys, values) > kLargestTensorDim || args.token_gradients != nullptr) return 0;
  if (values <= 64) {
    scan_in_parts(args, 64, [&](const ScanArgs<float>& part, int64_t count) {
      count <= 48 ? detail::launch_float32<48, 1>(context, part) : detail::launch_float32<64, 1>(context, part);
    });
    return 1;
  }
  scan_in_parts(args, 128, [&](const ScanArgs<float>& part, int64_t count) {
    if (count <= 64) {
      detail::launch_float32<64, 2>(context, part);
    } else if (count <= 80) {
      detail::launch_float32<80, 2>(context, part);
    } else if (count <= 96) {
      detail::launch_float32<96, 2>(context, part);
    } else {
      detail::launch_float32<128, 2>(context, part);
    }
  });
  return 1;
}

}  // namespace heddle::kernels::cuda
