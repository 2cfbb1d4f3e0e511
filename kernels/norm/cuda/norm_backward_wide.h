// The segments that norm_backward_rows leaves out because their numbers have left the range of its arithmetic: at the
// end each block computes its own by wide_group.h. In between the sign bit of a segment's inv_std, which is positive,
// marks it: that takes no registers from the loop over the segments.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/norm/cuda/norm_backward_plan.h"
#include "kernels/norm/cuda/wide_team.h"

namespace heddle::kernels::cuda {

// Adds (+=) the terms of one feature to the block's row of partial sums, if there is one.
template <class A>
struct PartialSums {
  const NormBackwardArgs& args;
  __device__ void operator()(int64_t feature, double d_weight, double d_bias) const {
    if (!args.partials) return;
    A* partials = row<A>(args.partials, blockIdx.x) + feature;
    partials[0] += static_cast<A>(d_weight);
    partials[args.x.cols] += static_cast<A>(d_bias);
  }
};

__device__ __forceinline__ bool is_marked(float inv_std) { return __float_as_int(inv_std) < 0; }
__device__ __forceinline__ float marked(float inv_std) { return __int_as_float(__float_as_int(inv_std) | INT_MIN); }
__device__ __forceinline__ float unmarked(float inv_std) { return fabsf(inv_std); }

// All threads of a block of norm_backward_rows call it together, after the block has written its row of partial sums.
// Segments are taken in the order of items, so that sums have the same bits every time. The function is not inlined,
// because it would take registers from its callers.
template <class T, class P, int BLOCK_THREADS, bool HAS_SUMS>
__device__ __noinline__ void differentiate_marked(const NormBackwardArgs& args, const BackwardPlan& plan,
                                                  int row_groups) {
  using A = accumulate_t<T>;
  using Team = WideTeam<BLOCK_THREADS, 1>;
  __shared__ typename Team::Storage storage;
  int buffer = 0;
  const Team team{storage, buffer, 0, static_cast<int>(threadIdx.x)};
  const int begin = static_cast<int>(blockIdx.x) * plan.block_stride, end = min(plan.items, begin + plan.block_span);
  const int groups = static_cast<int>(args.options.groups), extent = static_cast<int>(args.x.cols) / groups;
  for (int item = begin; item < end; ++item) {
    const int place_in_step = (item - begin) % plan.step;
    if (place_in_step >= row_groups) {  // the items up to the next step are those of other blocks
      item += plan.step - place_in_step - 1;
      continue;
    }
    const int row_index = HAS_SUMS ? item : item / groups;
    const int group = HAS_SUMS ? static_cast<int>(blockIdx.y) : item - row_index * groups;
    A& inv_std = vector<A>(args.inv_std)[row_index * groups + group];
    if (!is_marked(inv_std)) continue;
    const GroupPlace place{row_index, group * extent, extent, row_index * groups + group};
    if constexpr (HAS_SUMS) {
      differentiate_wide<T, P>(args, team, place, PartialSums<A>{args});
    } else {
      differentiate_wide<T, P>(args, team, place, [](int64_t, double, double) {});
    }
    if (threadIdx.x == 0) inv_std = unmarked(inv_std);  // the sums above made all threads wait for each other
  }
}

}  // namespace heddle::kernels::cuda
