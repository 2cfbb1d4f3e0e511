#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/scan_parts.h"
#include "kernels/attention/cuda/scan_recurrent.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_recurrent(const __grid_constant__ ScanArgs<float> args, bool aligned) {
  extern __shared__ __align__(16) float numbers[];
  begin_scan(args);
  RecurrentScan<Shape, OUT, ADDS>(args, aligned, numbers).run();
  end_scan(args);
}

// Returns the number of tiles of value features.
template <int KEYS, int VALUES>
int64_t launch_recurrent(Context& context, const ScanArgs<float>& args) {
  using Shape = RecurrentShape<KEYS, VALUES>;
  const int64_t warps = std::min<int64_t>(parts_of(args.value.dim, Shape::kWarpValues), Shape::kMostWarps);
  const int width = static_cast<int>(warps) * Shape::kWarpValues;
  const int64_t tiles = parts_of(args.value.dim, width);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads), static_cast<unsigned>(tiles),
                  span_blocks(args));
  const bool aligned = can_vectorize_all(4, args.query, args.key, args.value, args.out.view);
  with_out_mode(args, [&](auto out, auto adds) {
    HEDDLE_LAUNCH_DEPENDENT(context, (scan_recurrent<Shape, out(), adds()>), grid, static_cast<unsigned>(warps) * 32,
                            (RecurrentScan<Shape, out(), adds()>::shared_bytes(width)), args, aligned);
  });
  return tiles;
}

}  // namespace detail

int64_t scan_recurrently(Context& context, const ScanArgs<float>& args) {
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (!is_recurrent(DType::float32, keys, values) || args.token_gradients != nullptr) return 0;
  if (keys <= 16 && values <= 8) return detail::launch_recurrent<16, 1>(context, args);
  if (keys <= 16 && values <= 16) return detail::launch_recurrent<16, 2>(context, args);
  if (keys <= 16) return detail::launch_recurrent<16, 4>(context, args);
  if (keys <= 32) return detail::launch_recurrent<32, 4>(context, args);
  if (keys <= 64) return detail::launch_recurrent<64, 4>(context, args);
  scan_in_parts(args, 128,
                [&](const ScanArgs<float>& part, int64_t) { detail::launch_recurrent<128, 4>(context, part); });
  return 1;  // there are at most 32 value features
}

}  // namespace heddle::kernels::cuda
