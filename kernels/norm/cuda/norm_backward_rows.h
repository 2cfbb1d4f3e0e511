// The norm backward kernel for segments that fit a row group. Formulas: norm_backward.h.
// Writes (=) or adds to (+=), as their modes say, d_x, d_residual and d_gate. Writes (=) one row of `partials` a block
// when there are parameter sums: partial sums of d_weight, then of d_bias.
// Bytes: every input, and every destination that is added to, is read once; every destination is written once.
// With parameter sums the grid is no larger than what the device holds at once; blocks walk over many rows and keep the
// sums in registers.
#pragma once

#include <cstdint>

#include "kernels/norm/cuda/norm_backward_load.h"
#include "kernels/norm/cuda/norm_backward_math.h"
#include "kernels/norm/cuda/norm_backward_wide.h"
#include "kernels/norm/cuda/norm_reduce_partials.h"

namespace heddle::kernels::cuda {

// Adds up the parameter sums of the row groups of a block, in their order, and writes them (=) as a row of `partials`.
// `shared` holds (row groups - 1, values of a thread, THREADS) numbers.
template <class K>
__device__ __forceinline__ void write_parameter_sums(const NormBackwardArgs& args, const BackwardItems<K>& items,
                                                     int row_group, const NormScalars<typename K::A>& scalars,
                                                     uint4* shared, typename K::ParameterSumArray& sums) {
  using A = typename K::A;
  if constexpr (K::kRowGroups > 1) {
    constexpr int kValues = K::kSums * K::kVectors * K::kWidth;
    A* values = &sums[0][0][0];
    A* others = reinterpret_cast<A*>(shared) + items.lane;
    __pipeline_wait_prior(0);
    __syncthreads();
    if (row_group > 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) others[((row_group - 1) * kValues + i) * K::kThreads] = values[i];
    }
    __syncthreads();
    if (row_group > 0) return;
    for (int other = 0; other < K::kRowGroups - 1; ++other) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] += others[(other * kValues + i) * K::kThreads];
    }
  }
  A* partials = row<A>(args.partials, blockIdx.x) + int64_t{blockIdx.y} * items.extent;
#pragma unroll
  for (int i = 0; i < K::kSums; ++i) {
    write_partials<K::kThreads>(partials + i * args.x.cols, sums[i], i == 0 ? scalars.scale : A(1), items.lane,
                                items.extent);
  }
}

// Adds up the sums of the threads of a row group: all three when `center`, else only the first, of g * d.
template <class K, class Overlap>
__device__ __forceinline__ void sum_over_row_group(typename K::A (&sums)[3], bool center,
                                                   typename K::SumStorage& storage, int row_group, int& buffer,
                                                   const Overlap& overlap) {
  if (center) {
    row_group_sum(sums, storage, row_group, buffer, overlap);
  } else {
    typename K::A sum[1] = {sums[0]};
    row_group_sum(sum, storage, row_group, buffer, overlap);
    sums[0] = sum[0];
  }
}

// K is a BackwardTraits. Grid: (blocks, groups) with parameter sums, (blocks) without.
template <class K>
__global__ void __launch_bounds__(K::kBlockThreads, K::kMinBlocks)
    norm_backward_rows(const __grid_constant__ NormBackwardArgs args, const __grid_constant__ BackwardTensors tensors,
                       const __grid_constant__ NormScalars<typename K::A> scalars,
                       const __grid_constant__ BackwardPlan plan) {
  using A = typename K::A;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ typename K::SumStorage sum_storage;
  __shared__ typename K::StatisticsArray statistics;
  const int row_group = row_group_of_thread<K::kThreads, K::kRowGroups>();
  const int lane = threadIdx.x % K::kThreads;
  const int groups = static_cast<int>(scalars.groups), extent = static_cast<int>(scalars.extent);
  const int begin = static_cast<int>(blockIdx.x) * plan.block_stride;
  const int end = min(plan.items, begin + plan.block_span);
  int step = plan.step, stages = plan.stages;
  if constexpr (K::kHoldsCounters) {
    hide_from_compiler(step);
    hide_from_compiler(stages);
  }
  int stage_distance = stages * step;  // from an item to the next one in its stage
  if constexpr (K::kHoldsCounters) hide_from_compiler(stage_distance);
  int buffer = 0;
  if constexpr (K::kHasSums) grid_dependency_trigger();

  const BackwardItems<K> items{groups, extent, lane, extent - lane * K::kWidth, scalars.by_groups};
  const uint32_t stage_bytes = tensors.count * K::kInputBytes;
  const uint32_t weight_address = shared_address(dynamic_shared) + lane * K::kParameterBytes;
  uint32_t stages_address = shared_address(dynamic_shared) + lane * 16 +
                            static_cast<uint32_t>(K::weight_bytes(extent)) + row_group * K::kVectors * K::kVectorBytes;
  if constexpr (K::kHoldsAddresses) hide_from_compiler(stages_address);
  const bool center = K::kCenter == Center::run_time ? args.options.center : K::kCenter == Center::yes;
  const bool copies_statistics = center || (K::kKeepsElements && tensors.count == 2);
  const Prefetcher<K> prefetcher{args, tensors,        plan,        items,  statistics,
                                 end,  stages_address, stage_bytes, center, copies_statistics};

  // The loads of the weight are issued before those of the first items, and awaited after.
  [[maybe_unused]] typename K::ParameterVec loaded_weight[K::kVectors];
  [[maybe_unused]] typename K::WeightVec kept_weight[K::kVectors];
  if constexpr (K::kHasSums) load_weight<K>(args, items, dynamic_shared, loaded_weight);
  int item = begin + row_group;
  prefetcher.fill(item, step, stages);
  if constexpr (K::kKeepsWeight) keep_weight<K>(loaded_weight, kept_weight);
  typename K::ParameterSumArray parameter_sums = {};
  if constexpr (K::kHasSums && !K::kKeepsWeight) {  // the weight came with the first items
    wait_for_oldest(stages);
    __syncthreads();
  }

  int stage = 0;
  bool has_wide = false;  // whether a segment of the thread's row group is left to differentiate_marked()
  const bool prefetch_during_sum = K::kKeepsElements && plan.prefetch_during_sum;
  with_activation<K::kBranchesOnce>(args.options.gate_act, [&](auto act) {
    constexpr Activation kAct = decltype(act)::value;
    // All row groups of a block make the same number of iterations: those that share a warp exchange by shuffles.
    for (; item - row_group < end; item += step) {
      const bool active = K::kRowGroups == 1 || item < end;
      const auto [row_index, column] = items.place(item);
      A mean = A(0), inv_std = A(0);
      if (!copies_statistics && active) inv_std = vector<const A>(args.inv_std)[items.segment(item)];
      wait_for_oldest(stages);
      if (copies_statistics) read_statistics<K>(statistics, stage, center, mean, inv_std);
      uint32_t address = stages_address + stage * stage_bytes;
      if constexpr (K::kHoldsAddresses) hide_from_compiler(address);
      const SegmentInputs<K> segment(args, tensors, kept_weight, weight_address, address, column, mean, inv_std);

      KeptElements<K> kept;
      // A mean that is small beside the deviation was rounded by too little to matter.
      const bool needs_shift = !K::kInstructionBound || !(abs(mean) * inv_std <= A(1));
      A sums[3] = {A(0), A(0), A(0)};
      const auto reduce = [&](auto center, auto weighted) {
        reduce_segment<K, decltype(center)::value, decltype(weighted)::value, kAct>(segment, items, active, needs_shift,
                                                                                    kept, sums);
      };
      const bool weighted = K::kHasSums || args.weight;
      with_flags<K>(reduce, center, weighted);
      const auto prefetch_next = [&] {
        if (prefetch_during_sum) prefetcher.first_pass(item + stage_distance, stage);
      };
      sum_over_row_group<K>(sums, center, sum_storage, row_group, buffer, prefetch_next);
      const SegmentFactors<A> factors(sums, inv_std, center, scalars);
      const SegmentOutputs<K> outputs(tensors, segment, items, plan, row_index);
      const auto apply = [&](auto center, auto weighted) {
        apply_gradients<K, decltype(center)::value, decltype(weighted)::value, kAct>(
            segment, items, active, kept, factors, scalars, outputs, parameter_sums);
      };
      if (factors.is_ordinary(sums[0])) [[likely]] {  // the same in all threads of a row group
        with_flags<K>(apply, center, weighted);
      } else if (active) {
        has_wide = true;
        if (lane == 0) vector<A>(args.inv_std)[items.segment(item)] = marked(inv_std);
      }
      if (!prefetch_during_sum) prefetcher.first_pass(item + stage_distance, stage);
      prefetcher.second_pass(item + stage_distance, stage);
      stage = stage + 1 == stages ? 0 : stage + 1;
    }
  });
  if constexpr (K::kHasSums) {
    write_parameter_sums<K>(args, items, row_group, scalars, dynamic_shared, parameter_sums);
  }
  if (__syncthreads_or(has_wide)) {
    differentiate_marked<typename K::T, typename K::P, K::kBlockThreads, K::kHasSums>(args, plan, K::kRowGroups);
  }
}

}  // namespace heddle::kernels::cuda
