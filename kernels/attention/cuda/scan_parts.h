// A scan in parts: out is the sum of the scans of some features of query and key each, and the state has a part for
// each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/scan.h"

namespace heddle::kernels::cuda {
namespace detail {

// The view from feature `first` on, of `count` features.
inline HeadsView features_of(HeadsView view, int64_t first, int64_t count) {
  view.data = static_cast<char*>(view.data) + first * static_cast<int64_t>(size_of(view.dtype));
  view.dim = count;
  return view;
}
inline StateView<float> keys_from(StateView<float> states, int64_t first) {
  if (states.data != nullptr) states.data += first * states.key_stride;
  return states;
}

}  // namespace detail

// The scan of `count` features of query and key from `first` on.
inline ScanArgs<float> part_of_keys(ScanArgs<float> args, int64_t first, int64_t count) {
  args.query = detail::features_of(args.query, first, count);
  args.key = detail::features_of(args.key, first, count);
  args.state_in = detail::keys_from(args.state_in, first);
  args.state_out = detail::keys_from(args.state_out, first);
  args.span_states = detail::keys_from(args.span_states, first);
  args.window_states = detail::keys_from(args.window_states, first);
  args.is_independent &= first == 0;  // the others add to what the first one has written
  return args;
}

// Calls launch(args, keys) for parts of at most `most` features of query and key each, a multiple of 16. The first one
// writes or adds to out as args says, the others add.
template <class Launch>
void scan_in_parts(const ScanArgs<float>& args, int64_t most, const Launch& launch) {
  const int64_t keys = args.query.dim, size = parts_of(parts_of(keys, parts_of(keys, most)), 16) * 16;
  for (int64_t first = 0; first < keys; first += size) {
    ScanArgs<float> part = part_of_keys(args, first, std::min(size, keys - first));
    if (first > 0) part.out.mode = GradientMode::accumulate;
    launch(part, part.query.dim);
  }
}

}  // namespace heddle::kernels::cuda
