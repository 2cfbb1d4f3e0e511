#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan_float32.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {
namespace {

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_float32(const __grid_constant__ ScanArgs<float> args) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  Float32Scan<Shape, OUT, ADDS>(args, *reinterpret_cast<typename Shape::Shared*>(aligned_raw)).run();
#else
  __trap();
#endif
}

template <int KEYS, int GROUPS>
int64_t launch_float32(Context& context, const ScanArgs<float>& args) {
  using Shape = Float32Shape<KEYS, GROUPS>;
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  const int64_t tiles = parts_of(args.value.dim, Shape::kValues);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads), static_cast<unsigned>(tiles),
                  span_blocks(args));
  if (args.is_for_span_states || !args.out) {
    HEDDLE_LAUNCH(context, (scan_float32<Shape, false, false>), grid, Shape::kThreads, kBytes, args);
  } else if (args.out.mode == GradientMode::accumulate) {
    HEDDLE_LAUNCH(context, (scan_float32<Shape, true, true>), grid, Shape::kThreads, kBytes, args);
  } else {
    HEDDLE_LAUNCH(context, (scan_float32<Shape, true, false>), grid, Shape::kThreads, kBytes, args);
  }
  return tiles;
}

}  // namespace
}  // namespace detail

int64_t scan_floats_on_warpgroups(Context& context, const ScanArgs<float>& args) {
  constexpr int64_t kShortest = 16, kFewest = 32;  // heads of as many features fit the tiles of scan_tensor.h better
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (context.properties().compute_capability != 90 || keys > 128 || args.query.length < kShortest) return 0;
  if (keys <= kFewest || values <= kFewest || args.token_gradients != nullptr) return 0;
  if (!can_vectorize_all(4, args.query, args.key, args.value) || !can_vectorize(args.out.view, 2)) return 0;
  return keys > 64 ? detail::launch_float32<128, 2>(context, args) : detail::launch_float32<64, 1>(context, args);
}

}  // namespace heddle::kernels::cuda
