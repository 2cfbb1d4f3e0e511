// The scan on the matrix instructions of warpgroups (sm_90a), for bfloat16 heads of up to 128 features of query and key.
// A block has a warpgroup that loads the chunks, one that computes their scores, and one or two consumers. A consumer
// holds the state of 64 value features, transposed, in registers, and computes with it
//   out^T = in (S^T query^T) + value^T scores^T;   S^T = whole S^T + (to value^T) key
// so that all it computes is operand A, in registers, and operands B lie in shared memory. in, to and whole are the
// weights of scan.h. The first product is one in tf32, which cuts the state to 11 bits: against the rounding of out to 8
// bits that is nothing. Scores and weighted values are sums of two bfloat16 numbers, see pieces.h. Consumers do not wait
// for each other: while one scales and splits numbers, the tensor cores work for the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_consumer.h"
#include "kernels/attention/cuda/scan_warpgroup_loader.h"
#include "kernels/attention/cuda/scan_warpgroup_scorer.h"
#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    scan_warpgroup(const __grid_constant__ ScanArgs<float> args) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  auto& shared = *reinterpret_cast<typename Shape::Shared*>(aligned_raw);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      shared.loaded[stage].init(ScanLoader<Shape, OUT>::kArrivals);
      shared.ready[stage].init(128);
      shared.free[stage].init(4 * Shape::kGroups);
    }
    for (SharedBarrier& barrier : shared.query_free) barrier.init(128);
    SharedBarrier::fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x < 32) ScanLoader<Shape, OUT>(args, shared).run();
  } else if (threadIdx.x < 256) {
    give_registers<Shape::kScorerRegisters>();
    ScanScorer<Shape, OUT>(args, shared).run();
  } else {
    take_registers<Shape::kConsumerRegisters>();
    ScanConsumer<Shape, OUT, ADDS>(args, shared).run();
  }
#else
  __trap();
#endif
}

template <int KEYS, int GROUPS>
int64_t launch_warpgroups(Context& context, const ScanArgs<float>& args) {
  using Shape = WarpgroupShape<KEYS, GROUPS>;
  constexpr size_t kBytes = sizeof(typename Shape::Shared);
  const int64_t tiles = parts_of(args.value.dim, Shape::kValues);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads * tiles), 1, span_blocks(args));
  if (args.is_for_span_states || !args.out) {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, false, false>), grid, Shape::kThreads, kBytes, args);
  } else if (args.out.mode == GradientMode::accumulate) {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, true, true>), grid, Shape::kThreads, kBytes, args);
  } else {
    HEDDLE_LAUNCH(context, (scan_warpgroup<Shape, true, false>), grid, Shape::kThreads, kBytes, args);
  }
  return tiles;
}

extern template int64_t launch_warpgroups<64, 1>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<64, 2>(Context&, const ScanArgs<float>&);
extern template int64_t launch_warpgroups<128, 2>(Context&, const ScanArgs<float>&);

}  // namespace detail

}  // namespace heddle::kernels::cuda
