// Reductions over the lanes of a warp and the warps of a block. The shape of the launch fixes the order of additions,
// so results are the same bits every time. Every thread gets the result, with the same bits.
#pragma once

#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda {

struct Sum {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
// Ignores NaN; a softmax still becomes NaN through its exponentials.
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

// Reduces over groups of `width` consecutive lanes, a power of two up to 32. All lanes of the warp must call it.
template <int width = 32, class Op, class A>
__device__ __forceinline__ A group_reduce(A value, Op op) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}
template <int width = 32, class A>
__device__ __forceinline__ A group_sum(A value) {
  return group_reduce<width>(value, Sum{});
}
template <int width = 32, class A>
__device__ __forceinline__ A group_max(A value) {
  return group_reduce<width>(value, Max{});
}

// Sums of VALUES values over the lanes of a warp, scattered: lane l gets the sum of value l / lanes_per_sum<VALUES>.
// Three values take 6 shuffles; reducing one after the other takes 15.
template <int VALUES>
inline constexpr int lanes_per_sum = 32 / (VALUES > 2 ? 4 : VALUES);
template <class A, int VALUES>
__device__ __forceinline__ A warp_reduce_scatter(const A (&value)[VALUES]) {
  static_assert(VALUES <= 4);
  constexpr int kGroups = 32 / lanes_per_sum<VALUES>;
  A partial[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) partial[i] = i < VALUES ? value[i] : A(0);
#pragma unroll
  for (int half = kGroups / 2; half > 0; half /= 2) {  // each half of the lanes keeps half of the values
    const int distance = 32 * half / kGroups;
    const bool is_upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A sent = is_upper ? partial[i] : partial[i + half];
      partial[i] = (is_upper ? partial[i + half] : partial[i]) + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
  }
  return group_sum<lanes_per_sum<VALUES>>(partial[0]);
}
// Gives scattered sums to all lanes: `sum` is what warp_reduce_scatter() returned.
template <class A, int VALUES>
__device__ __forceinline__ void warp_all_gather(A sum, A (&value)[VALUES]) {
#pragma unroll
  for (int i = 0; i < VALUES; ++i) value[i] = __shfl_sync(0xffffffffu, sum, i * lanes_per_sum<VALUES>);
}

// Shared memory of block reductions of `values` numbers at once.
template <class A, int threads, int values = 1>
struct ReduceShared {
  static_assert(threads % 32 == 0 && threads <= 1024);
  A warps[values][threads / 32];
};

// Reduces several numbers over the `threads` threads of a block, with one pair of barriers for all of them. `shared`
// may be reused for the next reduction without a barrier in between.
template <int threads, int values, class Op, class A>
__device__ __forceinline__ void block_reduce(A (&value)[values], Op op, ReduceShared<A, threads, values>& shared) {
#pragma unroll
  for (int i = 0; i < values; ++i) value[i] = group_reduce<32>(value[i], op);
  if constexpr (threads > 32) {
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < values; ++i) shared.warps[i][threadIdx.x / 32] = value[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < values; ++i) {
      value[i] = shared.warps[i][0];
#pragma unroll
      for (int warp = 1; warp < threads / 32; ++warp) value[i] = op(value[i], shared.warps[i][warp]);
    }
  }
}
template <int threads, class Op, class A>
__device__ __forceinline__ A block_reduce(A value, Op op, ReduceShared<A, threads>& shared) {
  A values[1] = {value};
  block_reduce<threads, 1>(values, op, shared);
  return values[0];
}
template <int threads, class A>
__device__ __forceinline__ A block_sum(A value, ReduceShared<A, threads>& shared) {
  return block_reduce<threads>(value, Sum{}, shared);
}
template <int threads, class A>
__device__ __forceinline__ A block_max(A value, ReduceShared<A, threads>& shared) {
  return block_reduce<threads>(value, Max{}, shared);
}

}  // namespace heddle::kernels::cuda
