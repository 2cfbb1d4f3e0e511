// sums (cols) (=|+=) sum over the rows of x (rows, cols): the gradient of a bias. kernels/dense/gemm.h The rows are cut
// into splits, whose number depends on the sizes alone. The partial sums of the splits go to the context's scratch
// memory, and a second launch adds them up in order. x is read once.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/compensated_sum.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kLanes = 32;  // threads of a block along a row
constexpr int kDepth = 8;   // rows of a block

// Adds up the values of the kDepth threads of a column of the block, in pairs; thread y = 0 gets the result.
template <int width, class A>
__device__ __forceinline__ Vec<A, width> sum_down(Vec<A, width> value, Vec<A, width> (&shared)[kDepth][kLanes]) {
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
#pragma unroll
  for (int half = kDepth / 2; half > 0; half /= 2) {
    if (threadIdx.y < half) {
      const Vec<A, width> other = shared[threadIdx.y + half][threadIdx.x];
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] += other[i];
      shared[threadIdx.y][threadIdx.x] = value;
    }
    __syncthreads();
  }
  return value;
}

// to (splits, cols) (=|+=) the sums of `rows_per_split` rows each. Grid: (tiles of columns, splits).
template <class T, class To, int width>
__global__ void __launch_bounds__(kLanes* kDepth) sum_splits(RowsView x, int64_t rows_per_split, To* to, bool add) {
  using A = accumulate_t<T>;
  __shared__ Vec<A, width> shared[kDepth][kLanes];
  const int64_t col = (blockIdx.x * int64_t{kLanes} + threadIdx.x) * width;
  const int64_t begin = blockIdx.y * rows_per_split;
  const int64_t end = begin + rows_per_split < x.rows ? begin + rows_per_split : x.rows;
  VecSum<A, width> own;
  if (col < x.cols) {
#pragma unroll 4
    for (int64_t i = begin + threadIdx.y; i < end; i += kDepth) own.add(load_wide<width>(row<const T>(x, i) + col));
  }
  const Vec<A, width> sum = sum_down(own.value(), shared);
  if (threadIdx.y == 0 && col < x.cols) store_or_add(to + blockIdx.y * x.cols + col, sum, add);
}

template <class T, class To>
void sum_rows(Context& context, const RowsView& x, int64_t splits, To* to, bool add) {
  const int64_t rows_per_split = ceil_div(std::max<int64_t>(x.rows, 1), splits);
  with_width<T>(
      can_vectorize(x, vector_width<T>) && can_vectorize(VectorView{to, dtype_of<To>, x.cols}, vector_width<T>),
      [&](auto chosen) {
        constexpr int width = decltype(chosen)::value;
        const dim3 grid(static_cast<unsigned>(ceil_div(x.cols, kLanes * width)), static_cast<unsigned>(splits));
        HEDDLE_LAUNCH(context, (sum_splits<T, To, width>), grid, dim3(kLanes, kDepth), 0, x, rows_per_split, to, add);
      });
}

// Enough splits for about 256 blocks, with at least 4 rows for each thread and no more than the scratch memory holds.
int64_t choose_splits(int64_t rows, int64_t cols, size_t size) {
  const int64_t tiles = ceil_div(cols, 8 * kLanes);
  const int64_t room = static_cast<int64_t>(Scratch::kBytes / size) / cols;
  return std::max<int64_t>(1, std::min({ceil_div(rows, 4 * kDepth), ceil_div(256, tiles), room}));
}

}  // namespace

void column_sum(Context& context, const ColumnSumArgs& args) {
  const RowsView& x = args.x;
  if (x.cols == 0) return;
  const bool add = args.sums.mode == GradientMode::accumulate;
  visit_floating(x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    visit_same_or_accumulate<T>(args.sums.view.dtype, x.dtype, [&](auto result) {
      auto* sums = vector<decltype(result)>(args.sums.view);
      const int64_t splits = choose_splits(x.rows, x.cols, sizeof(A));
      if (splits == 1) return sum_rows<T>(context, x, 1, sums, add);
      A* partials = static_cast<A*>(scratch(context));
      sum_rows<T>(context, x, splits, partials, false);
      const RowsView partial_rows = {partials, accumulate_type(x.dtype), splits, x.cols, x.cols};
      sum_rows<A>(context, partial_rows, 1, sums, add);
    });
  });
}

}  // namespace heddle::kernels::cuda
