// Bulk copies of tiles of a head into shared memory by the copy engine (TMA, sm_90). A tile is rows of tokens with all
// features of one head, a multiple of 64; it becomes a SwizzledMatrix (wgmma.h). Rows after the last token are 0.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cuda {

// Whether tensor_map() takes the view: 16-bit numbers, a multiple of 64 features, no extent 0, and rows that start at
// multiples of 16 bytes.
bool can_map(const HeadsView& view);
// Describes tiles of `rows` tokens, at most 256.
CUtensorMap tensor_map(const HeadsView& view, int rows);

// Starts to copy the tile whose first row is `token`. The barrier is told the bytes: kBytes of the matrix. One thread
// calls it.
template <class T, int ROWS, int COLS>
__device__ __forceinline__ void copy_tile(SwizzledMatrix<T, ROWS, COLS>& to, const CUtensorMap& map,
                                          SharedBarrier& barrier, int batch, int head, int token) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %2, %4, %5}], "
      "[%6];" ::"r"(shared_address(to.data)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(0), "r"(token), "r"(head), "r"(batch), "r"(barrier.address())
      : "memory");
}

}  // namespace heddle::kernels::cuda
