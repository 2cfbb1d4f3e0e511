// How CUDA kernels work on groups of consecutive features: a warp for each group, whose lanes take every 32nd feature.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda {

inline constexpr int kGroupThreads = 128;  // of a block: four groups

// Number of blocks for `groups` groups in each row of the shape.
inline unsigned grid_for_groups(const RowsView& shape, int64_t groups) {
  return static_cast<unsigned>(ceil_div(shape.rows * groups, kGroupThreads / 32));
}

// The group of this thread's warp.
struct WarpGroup {
  int64_t row, group;
  int64_t first, size;  // features [first, first + size) of the row

  __device__ __forceinline__ WarpGroup(const RowsView& shape, int64_t groups) : size(shape.cols / groups) {
    const int64_t index = blockIdx.x * int64_t{kGroupThreads / 32} + threadIdx.x / 32;
    row = index / groups;
    group = index % groups;
    first = group * size;
  }
  __device__ __forceinline__ bool is_in(const RowsView& shape) const { return row < shape.rows; }

  // Calls visit(feature) for the features of this lane.
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
#pragma unroll 1
    for (int64_t i = threadIdx.x % 32; i < size; i += 32) visit(first + i);
  }
};

// to (=|+=) value, rounded once.
template <class T>
__device__ __forceinline__ void store_value(T* to, accumulate_t<T> value, GradientMode mode) {
  if (mode == GradientMode::accumulate) value += widen(*to);
  *to = narrow<T>(value);
}

}  // namespace heddle::kernels::cuda
