#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/scan_float32_warpgroup.h"
#include "kernels/attention/cuda/scan_parts.h"

namespace heddle::kernels::cuda {
int64_t scan_floats_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || args.query.length < kShortestOnWarpgroups) return 0;
  if (std::max(keys, values) > kLargestTensorDim || args.token_gradients != nullptr) return 0;
  const bool is_narrow = values <= 64;
  const int64_t parts = parts_of(keys, is_narrow ? 64 : 128), part = parts_of(parts_of(keys, parts), 32) * 32;
  for (int64_t first = 0; first < keys; first += part) {
    const int64_t count = std::min(part, keys - first);
    ScanArgs<float> part_args = part_of_keys(args, first, count);
    if (first > 0) part_args.out.mode = GradientMode::accumulate;  // the first part writes or adds as args says
    if (is_narrow) {
      detail::launch_float32<64, 1>(context, part_args);
    } else if (count <= 64) {
      detail::launch_float32<64, 2>(context, part_args);
    } else if (count <= 96) {
      detail::launch_float32<96, 2>(context, part_args);
    } else {
      detail::launch_float32<128, 2>(context, part_args);
    }
  }
  return 1;
}

}  // namespace heddle::kernels::cuda
