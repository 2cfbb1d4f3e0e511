// How the rows of a chunk come into shared memory.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "kernels/common/cuda/pieces.h"
#include "kernels/common/types.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cuda::detail {

// Copies rows of one head into a matrix: the features from `offset` on of the rows of a chunk. Features beyond the
// view's and rows beyond the chunk's become 0. 16-bit types are copied asynchronously if `vectorized`, 16 bytes at a
// time.
template <class T, int THREADS, int ROWS, int COLS>
class RowCopier {
 public:
  __device__ __forceinline__ RowCopier(const HeadsView& view, int64_t batch, int64_t head_index, int64_t offset,
                                       bool from_end)
      : first_(head<const T>(view, batch, 0, head_index) + offset),
        step_(from_end ? -view.length_stride : view.length_stride),
        features_(static_cast<int>(min(int64_t{COLS}, view.dim - offset))) {}

  // `token` is that of row 0.
  __device__ __forceinline__ void copy(int64_t token, int rows, bool vectorized,
                                       StoredMatrix<T, ROWS, COLS>& to) const {
    const T* const row = first_ + token * (step_ < 0 ? -step_ : step_);
    if (vectorized && sizeof(T) == 2) {
      if (rows == ROWS && features_ == COLS) {
        each_place<8>(row, [&](int r, int c, const T* from) { __pipeline_memcpy_async(to.row(r) + c, from, 16); });
      } else {
        each_place<8>(row, [&](int r, int c, const T* from) {
          const bool is_there = r < rows && c < features_;
          __pipeline_memcpy_async(to.row(r) + c, from, 16, is_there ? 0 : 16);  // the last number: how many bytes are 0
        });
      }
    } else if (vectorized) {
      each_place<4>(row, [&](int r, int c, const T* from) {
        const bool is_there = r < rows && c < features_;
        const float4 four = is_there ? *reinterpret_cast<const float4*>(from) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        to.template put_pair<T>(r, c, four.x, four.y);
        to.template put_pair<T>(r, c + 2, four.z, four.w);
      });
    } else {
      each_place<2>(row, [&](int r, int c, const T* from) {
        const auto number = [&](int e) { return r < rows && c + e < features_ ? widen(from[e]) : 0.0f; };
        to.template put_pair<T>(r, c, number(0), number(1));
      });
    }
  }

 private:
  // Calls visit(row, column, address) for the thread's places of WIDTH elements each.
  template <int WIDTH, class Visit>
  __device__ __forceinline__ void each_place(const T* row, const Visit& visit) const {
    constexpr int kPlaces = COLS / WIDTH, kStep = THREADS / kPlaces;  // of a row; rows that are visited at once
    static_assert(THREADS % kPlaces == 0);
    const int first = static_cast<int>(threadIdx.x) / kPlaces, c = static_cast<int>(threadIdx.x) % kPlaces * WIDTH;
    const T* from = row + first * step_ + c;
#pragma unroll
    for (int i = 0; i < (ROWS + kStep - 1) / kStep; ++i, from += kStep * step_) {
      const int r = first + i * kStep;
      if (ROWS % kStep == 0 || r < ROWS) visit(r, c, from);
    }
  }

  const T* first_;
  int64_t step_;  // from a row to the next
  int features_;
};

}  // namespace heddle::kernels::cuda::detail
