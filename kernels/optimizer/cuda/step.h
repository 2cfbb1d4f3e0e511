// What the optimizer's kernels on a GPU have in common: the scalars of a step, and what becomes of a new master.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/vec.h"
#include "kernels/optimizer/moving_average.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/sum_of_squares.h"

namespace heddle::kernels::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kChunk = 16384;  // the same as in gradient_norm_partials()

template <class A>
__device__ __forceinline__ double square(A number, double factor) {
  const double scaled = static_cast<double>(number) * factor;
  return scaled * scaled;
}

// Whether the step is to be taken at all.
template <class A>
__device__ __forceinline__ bool is_finite_step(const A* scalars) {
  return isfinite(scalars[scalar_gradient_norm] * scalars[scalar_gradient_scale]);
}

// What the gradient is multiplied by: gradient_scale, and less where the norm is clipped.
template <class A>
__device__ __forceinline__ A clipped_scale(const A* scalars) {
  A scale = scalars[scalar_gradient_scale];
  const A clip_norm = scalars[scalar_clip_norm];
  const A norm = scalars[scalar_gradient_norm] * scale;
  if (clip_norm > A(0) && norm > clip_norm) scale *= clip_norm / norm;
  return scale;
}

// The average of the weights.
template <class A>
__device__ __forceinline__ MovingAverage<A> average_of_weights(const A* scalars) {
  return {scalars[scalar_average_decay], scalars[scalar_average_rest]};
}

// Where new masters go beside the vector of the masters; a null pointer is not written.
template <class A, class T>
struct MasterCopies {
  T* value;
  A* average;
};

// Writes the new masters of the elements i .. i + width - 1 into the compute copy and into the average.
template <int width, class A, class T>
__device__ __forceinline__ void store_copies(const MasterCopies<A, T>& copies, int64_t i, const Vec<A, width>& master,
                                             const MovingAverage<A>& averaged) {
  if (copies.value != nullptr) store_narrow(copies.value + i, master);
  if (copies.average == nullptr) return;
  Vec<A, width> average = load<width>(copies.average + i);
#pragma unroll
  for (int j = 0; j < width; ++j) average[j] = averaged.next(average[j], master[j]);
  store(copies.average + i, average);
}

}  // namespace heddle::kernels::cuda
