// The scan on the matrix instructions of warpgroups (sm_90a), for bfloat16 heads of up to 128 features of query and
// key. A block has one warpgroup that loads the chunks and computes their scores, the producer, and one or two
// consumers. A consumer holds the state of 64 value features, transposed, in registers, and computes with it
//   out^T = in (S^T query^T) + value^T scores^T;   S^T = whole S^T + (to value^T) key
// so that all it computes is operand A, in registers, and operands B lie in shared memory as they were loaded. in, to
// and whole are the weights of scan.h. State, scores and weighted values are sums of two bfloat16 numbers, see
// pieces.h. Consumers do not wait for each other: while one splits and scales numbers, the tensor cores work for the
// other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_consumer.h"
#include "kernels/attention/cuda/scan_warpgroup_producer.h"
#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_warpgroup(const __grid_constant__ ScanArgs<float> args) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  auto& shared = *reinterpret_cast<typename Shape::Shared*>(aligned_raw);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      shared.ready[stage].init(128);
      shared.free[stage].init(4 * Shape::kGroups);
    }
    SharedBarrier::fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<Shape::kProducerRegisters>();
    ScanProducer<Shape, OUT>(args, shared).run();
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
