// The scan on the matrix instructions of warpgroups (sm_90a), for bfloat16 heads of up to 128 features of query and
// key, or twice as many in two parts. A block has one or two consumers, warpgroups that hold the state of 64 value
// features each, transposed, in registers, and compute with it
//   out^T = in (S^T query^T) + value^T scores^T;   S^T = whole S^T + value^T (to key)
// so that all that is computed from the state is operand A, in registers, and operands B lie in shared memory. in, to
// and whole are the weights of scan.h. Another warpgroup, the scorer, computes the scores, three warps, the weighers,
// the weighted keys, and one warp, the loader, has the copy engine fetch the rows. State, scores and weighted keys are
// sums of two bfloat16 numbers, see pieces.h. Consumers do not wait for each other: while one splits and scales
// numbers, the tensor cores work for the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_consumer.h"
#include "kernels/attention/cuda/scan_warpgroup_loader.h"
#include "kernels/attention/cuda/scan_warpgroup_scorer.h"
#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/attention/cuda/scan_warpgroup_weigher.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape, bool OUT, bool ADDS, PartialOut PARTIAL>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_warpgroup(const __grid_constant__ WarpgroupScan scan) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  auto& shared = *reinterpret_cast<typename Shape::Shared*>(aligned_raw);
  begin_scan(scan.args);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Shape::kGroups;
    for (SharedBarrier& barrier : shared.loaded) barrier.init(33);
    for (SharedBarrier& barrier : shared.value_loaded) barrier.init(1);
    for (SharedBarrier& barrier : shared.ready) barrier.init(4 + Shape::kWeighers);
    for (SharedBarrier& barrier : shared.free) barrier.init(kConsumerWarps);
    shared.weighted_free.init(kConsumerWarps);
    shared.value_free.init(kConsumerWarps);
    for (SharedBarrier& barrier : shared.before_loaded) barrier.init(1);
    SharedBarrier::fence_init();
  }
  if (scan.args.sums == nullptr && threadIdx.x < Shape::kRows) {
    const HeadDecay<float> decay(scan.args, WarpgroupPlace<Shape>(scan.args).state_head);
    const float2 sum = decay_sum<float>(static_cast<double>(threadIdx.x + 1) * decay.slope);
    for (auto& chunk : shared.chunks) chunk.sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<Shape::kScorerRegisters>();
    ScanScorer<Shape, OUT>(scan.args, shared).run();
  } else if (threadIdx.x < Shape::kThreads - 128) {
    take_registers<Shape::kConsumerRegisters>();
    ScanConsumer<Shape, OUT, ADDS, PARTIAL>(scan, shared).run();
  } else {
    give_registers<Shape::kLoaderRegisters>();
    const int warp = static_cast<int>(threadIdx.x - (Shape::kThreads - 128)) / 32;
    if (warp == 0) {
      ScanLoader<Shape, OUT>(scan, shared).run();
    } else {
      KeyWeigher<Shape>(scan.args, shared, warp - 1).run();
    }
  }
  end_scan(scan.args);
#else
  __trap();
#endif
}

// The scan of heads of up to KEYS features of query and key, in tiles of 64 GROUPS value features, whose number it
// returns.
template <int KEYS, int GROUPS, PartialOut PARTIAL>
int64_t launch_warpgroups(Context& context, const ScanArgs<float>& args) {
  using Shape = WarpgroupShape<KEYS, GROUPS>;
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  const int64_t tiles = parts_of(args.value.dim, Shape::kValues);
  const WarpgroupScan scan{feature_map(args.query, Shape::kRows, 64), feature_map(args.key, Shape::kRows, 64),
                           feature_map(args.value, Shape::kRows, 64),
                           args.out ? feature_map(args.out.view, Shape::kRows, 16) : CUtensorMap{}, args};
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads * tiles), 1, span_blocks(args));
  const auto start = [&]<bool OUT, bool ADDS>() {
    HEDDLE_LAUNCH_DEPENDENT(context, (scan_warpgroup<Shape, OUT, ADDS, PARTIAL>), grid, Shape::kThreads, kBytes, scan);
  };
  if constexpr (PARTIAL == PartialOut::written) {
    start.template operator()<true, false>();
  } else {
    with_out_mode(args, [&](auto out, auto adds) {
      if constexpr (out() || PARTIAL == PartialOut::none) start.template operator()<out(), adds()>();
    });
  }
  return tiles;
}

extern template int64_t launch_warpgroups<64, 1, PartialOut::none>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<64, 2, PartialOut::none>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<64, 2, PartialOut::added>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<128, 2, PartialOut::none>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<128, 2, PartialOut::written>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<128, 2, PartialOut::added>(Context&, const ScanArgs<float>&);

}  // namespace detail

}  // namespace heddle::kernels::cuda
