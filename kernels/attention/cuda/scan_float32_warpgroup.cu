#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/scan_float32_warpgroup.h"

namespace heddle::kernels::cuda {
namespace {

// The view from feature `first` on, of `count` features.
HeadsView features_of(HeadsView view, int64_t first, int64_t count) {
  view.data = static_cast<char*>(view.data) + first * static_cast<int64_t>(size_of(view.dtype));
  view.dim = count;
  return view;
}
StateView<float> keys_from(StateView<float> states, int64_t first) {
  if (states.data != nullptr) states.data += first * states.key_stride;
  return states;
}

// The scan of `count` features of query and key from `first` on. Out is the sum of the scans of all parts of the
// features: the first one writes or adds it as args says, and the others add.
ScanArgs<float> part_of_keys(ScanArgs<float> args, int64_t first, int64_t count) {
  args.query = features_of(args.query, first, count);
  args.key = features_of(args.key, first, count);
  args.state_in = keys_from(args.state_in, first);
  args.state_out = keys_from(args.state_out, first);
  args.span_states = keys_from(args.span_states, first);
  if (first > 0) args.out.mode = GradientMode::accumulate;
  return args;
}

}  // namespace

int64_t scan_floats_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  constexpr int64_t kShortest = 16, kFewest = 32;  // heads of as many features fit the tiles of scan_tensor.h better
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || args.query.length < kShortest) return 0;
  if (std::max(keys, values) <= kFewest || std::max(keys, values) > kLargestTensorDim) return 0;
  if (args.token_gradients != nullptr) return 0;
  const bool is_narrow = values <= 64;
  const int64_t parts = parts_of(keys, is_narrow ? 64 : 128), part = parts_of(parts_of(keys, parts), 32) * 32;
  for (int64_t first = 0; first < keys; first += part) {
    const int64_t count = std::min(part, keys - first);
    const ScanArgs<float> part_args = part_of_keys(args, first, count);
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
