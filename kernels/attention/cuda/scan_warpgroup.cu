#include <cstdint>

#include "kernels/attention/cuda/scan_parts.h"
#include "kernels/attention/cuda/scan_warpgroup.h"

namespace heddle::kernels::cuda {
namespace {

using detail::launch_warpgroups;
using detail::PartialOut;

// The scan of heads whose query and key have more than kPartKeys features: of as many of them and then of the others.
int64_t scan_in_two_parts(Context& context, const ScanArgs<float>& args) {
  const int64_t rest = args.query.dim - kPartKeys;
  const ScanArgs<float> first = part_of_keys(args, 0, kPartKeys), last = part_of_keys(args, kPartKeys, rest);
  if (args.is_for_span_states || !args.out) {
    launch_warpgroups<128, 2, PartialOut::none>(context, first);
    return rest > 64 ? launch_warpgroups<128, 2, PartialOut::none>(context, last)
                     : launch_warpgroups<64, 2, PartialOut::none>(context, last);
  }
  launch_warpgroups<128, 2, PartialOut::written>(context, first);
  return rest > 64 ? launch_warpgroups<128, 2, PartialOut::added>(context, last)
                   : launch_warpgroups<64, 2, PartialOut::added>(context, last);
}

}  // namespace

int64_t scan_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || args.query.length < kShortestOnWarpgroups) return 0;
  if (keys > kLargestTensorDim) return 0;
  if (args.token_gradients != nullptr || !can_map_features(args.query) || !can_map_features(args.key) ||
      !can_map_features(args.value)) {
    return 0;
  }
  if (args.out && (args.out.view.dtype != DType::bfloat16 || !can_map_features(args.out.view))) return 0;
  if (keys > kPartKeys) return scan_in_two_parts(context, args);
  if (keys > 64) return launch_warpgroups<128, 2, PartialOut::none>(context, args);
  return values > 64 ? launch_warpgroups<64, 2, PartialOut::none>(context, args)
                     : launch_warpgroups<64, 1, PartialOut::none>(context, args);
}

}  // namespace heddle::kernels::cuda
