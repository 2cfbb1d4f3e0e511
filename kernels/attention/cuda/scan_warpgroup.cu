#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup.h"

namespace heddle::kernels::cuda {

int64_t scan_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  constexpr int64_t kShortest = 16;
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || keys > 128 || args.query.length < kShortest) return 0;
  if (args.token_gradients != nullptr || !can_map_features(args.query) || !can_map_features(args.key) ||
      !can_map_features(args.value)) {
    return 0;
  }
  if (args.out && (args.out.view.dtype != DType::bfloat16 || !can_map_features(args.out.view))) return 0;
  if (keys > 64) return detail::launch_warpgroups<128, 2>(context, args);
  return values > 64 ? detail::launch_warpgroups<64, 2>(context, args)
                     : detail::launch_warpgroups<64, 1>(context, args);
}

}  // namespace heddle::kernels::cuda
