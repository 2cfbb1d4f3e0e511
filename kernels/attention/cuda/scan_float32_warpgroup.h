// The kernel of scan_float32.h and its launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/scan_float32.h"
#include "kernels/common/cuda/launch.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape, bool OUT, bool ADDS>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    scan_float32(const __grid_constant__ ScanArgs<float> args, bool aligned) {
#ifdef HEDDLE_WGMMA
  extern __shared__ __align__(1024) unsigned char aligned_raw[];
  begin_scan(args);
  Float32Scan<Shape, OUT, ADDS>(args, aligned, *reinterpret_cast<typename Shape::Shared*>(aligned_raw)).run();
  end_scan(args);
#else
  __trap();
#endif
}

// The scan of heads of up to KEYS features of query and key, in tiles of 64 GROUPS value features.
template <int KEYS, int GROUPS>
void launch_float32(Context& context, const ScanArgs<float>& args) {
  using Shape = Float32Shape<KEYS, GROUPS>;
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads),
                  static_cast<unsigned>(parts_of(args.value.dim, Shape::kValues)), span_blocks(args));
  const bool aligned = can_vectorize_all(4, args.query, args.key);
  with_out_mode(args, [&](auto out, auto adds) {
    HEDDLE_LAUNCH_DEPENDENT(context, (scan_float32<Shape, out(), adds()>), grid, Shape::kThreads,
                            sizeof(typename Shape::Shared), args, aligned);
  });
}

extern template void launch_float32<48, 1>(Context&, const ScanArgs<float>&);
extern template void launch_float32<64, 1>(Context&, const ScanArgs<float>&);
extern template void launch_float32<64, 2>(Context&, const ScanArgs<float>&);
extern template void launch_float32<80, 2>(Context&, const ScanArgs<float>&);
extern template void launch_float32<96, 2>(Context&, const ScanArgs<float>&);
extern template void launch_float32<128, 2>(Context&, const ScanArgs<float>&);

}  // namespace detail
}  // namespace heddle::kernels::cuda
