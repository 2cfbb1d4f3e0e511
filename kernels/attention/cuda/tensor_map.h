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

// The same for tiles of `cols` features, 64 or 16, of heads of any multiple of 8. Features after the last one are 0
// too. In rows of 16 features the units of 16 bytes are swizzled as well: unit u of row r is at u ^ (r / 4 % 2).
bool can_map_features(const HeadsView& view);
CUtensorMap feature_map(const HeadsView& view, int rows, int cols);

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

// The same for a map of features: starts to copy the tile whose first feature is `feature` to shared memory.
__device__ __forceinline__ void copy_features(uint32_t to, const CUtensorMap& map, SharedBarrier& barrier, int batch,
                                              int head, int token, int feature) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(feature), "r"(token), "r"(head), "r"(batch), "r"(barrier.address())
      : "memory");
}
// COLS features from `feature` on, by tiles of 64.
template <class T, int ROWS, int COLS>
__device__ __forceinline__ void copy_features(SwizzledMatrix<T, ROWS, COLS>& to, const CUtensorMap& map,
                                              SharedBarrier& barrier, int batch, int head, int token, int feature) {
#pragma unroll
  for (int col = 0; col < COLS; col += 64) {
    copy_features(shared_address(to.data) + col / 64 * (ROWS * 128), map, barrier, batch, head, token, feature + col);
  }
}
// Starts to copy a tile from shared memory back, but for what lies outside of the tensor.
__device__ __forceinline__ void store_features(uint32_t from, const CUtensorMap& map, int batch, int head, int token,
                                               int feature) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
                   reinterpret_cast<uint64_t>(&map)),
               "r"(from), "r"(feature), "r"(token), "r"(head), "r"(batch)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until all stores of this thread have read shared memory.
__device__ __forceinline__ void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

}  // namespace heddle::kernels::cuda
