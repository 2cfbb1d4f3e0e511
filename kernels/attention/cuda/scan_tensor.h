// The scan on tensor cores, for heads of up to kLargestTensorDim features of any dtype but float64. Heads of other
// sizes than those of the kernels are padded with zeros. Each warp computes out of 16 rows of the chunk and a part of
// the tile's features, and holds a part of the state in registers, in float. The state and the weighted rows enter
// products as sums of pieces, see pieces.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_tensor_block.h"
#include "kernels/attention/cuda/scan_tensor_shape.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_tensor(const __grid_constant__ ScanArgs<float> args, bool vectorized) {
  extern __shared__ __align__(16) unsigned char raw[];
  TensorScan<Shape>(args, vectorized, *reinterpret_cast<typename Shape::Shared*>(raw)).run();
}

// Returns the number of tiles; 0, with nothing launched, where the GPU has too little shared memory.
template <class Shape>
int64_t launch_tensor(Context& context, const ScanArgs<float>& args) {
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  if (kBytes > context.properties().shared_bytes_per_block) return 0;
  constexpr int kWidth = sizeof(typename Shape::T) == 2 ? 8 : 4;
  const bool vectorized =
      can_vectorize_all(kWidth, args.query, args.key, args.value) && can_vectorize(args.out.view, 2);
  const int64_t tiles = parts_of(args.value.dim, Shape::kValues);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads), static_cast<unsigned>(tiles),
                  span_blocks(args));
  HEDDLE_LAUNCH(context, scan_tensor<Shape>, grid, Shape::kThreads, kBytes, args, vectorized);
  return tiles;
}

template <class T, bool DECAY>
int64_t scan_on_tensor_cores(Context& context, const ScanArgs<float>& args) {
  constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  constexpr int kRows = kIsFloat ? 32 : 64;
  const int64_t keys = args.query.dim;
  if constexpr (kIsFloat && DECAY) {
    if (std::max(keys, args.value.dim) <= 16) return launch_tensor<TensorShape<T, 16, 16, 64, 4, DECAY>>(context, args);
  }
  if constexpr (!kIsFloat || DECAY) {  // else scan_recurrent.h takes them
    if (keys <= 32) return launch_tensor<TensorShape<T, 32, 32, 64, 4, DECAY>>(context, args);
  }
  if (keys <= 64) {
    return launch_tensor<TensorShape<T, 64, kIsFloat ? 32 : 64, 64, 4, DECAY>>(context, args);
  }
  if (keys <= 128) return launch_tensor<TensorShape<T, 128, 64, kRows, kIsFloat ? 8 : 4, DECAY>>(context, args);
  if (keys > kLargestTensorDim) return 0;
  return launch_tensor<TensorShape<T, 256, 32, kRows, 4, DECAY>>(context, args);
}

}  // namespace detail

template <class T>
int64_t scan_on_tensor_cores(Context& context, const ScanArgs<accumulate_t<T>>& args) {
  return args.token_gradients != nullptr ? detail::scan_on_tensor_cores<T, true>(context, args)
                                         : detail::scan_on_tensor_cores<T, false>(context, args);
}

}  // namespace heddle::kernels::cuda
