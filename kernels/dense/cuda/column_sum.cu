// sums (cols) (=|+=) sum over the rows of x (rows, cols): the gradient of a bias.
// Rows are cut into a number of segments made from the sizes alone; the sums of segments wait in the context's scratch
// memory and are added in order by a second launch. One read of x.
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kLanes = 32;  // threads side by side in a row
constexpr int kDepth = 8;   // rows that a block reads at once

// Sums of the kDepth threads above each other, in order; the result is that of threadIdx.y == 0.
template <int width, class A>
__device__ __forceinline__ Vec<A, width> sum_down(Vec<A, width> value, Vec<A, width> (&shared)[kDepth][kLanes]) {
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.y == 0) {
#pragma unroll
    for (int y = 1; y < kDepth; ++y) {
#pragma unroll
      for (int i = 0; i < width; ++i) value[i] += shared[y][threadIdx.x][i];
    }
  }
  return value;
}

// to (segments, cols) (=|+=) the sums of `rows_per_segment` rows each. Blocks: (tiles of columns, segments).
template <class T, class To, int width>
__global__ void __launch_bounds__(kLanes* kDepth) sum_segments(RowsView x, int64_t rows_per_segment, To* to, bool add) {
  using A = accumulate_t<T>;
  __shared__ Vec<A, width> shared[kDepth][kLanes];
  const int64_t col = (blockIdx.x * int64_t{kLanes} + threadIdx.x) * width;
  const int64_t begin = blockIdx.y * rows_per_segment;
  const int64_t end = begin + rows_per_segment < x.rows ? begin + rows_per_segment : x.rows;
  Vec<A, width> sum = {};
  if (col < x.cols) {
#pragma unroll 4
    for (int64_t i = begin + threadIdx.y; i < end; i += kDepth) {
      const Vec<A, width> value = load_wide<width>(row<const T>(x, i) + col);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += value[j];
    }
  }
  sum = sum_down(sum, shared);
  if (threadIdx.y == 0 && col < x.cols) store_or_add(to + blockIdx.y * x.cols + col, sum, add);
}

template <class T, class To>
void sum_rows(Context& context, const RowsView& x, int64_t segments, To* to, bool add) {
  const int64_t rows_per_segment = ceil_div(std::max<int64_t>(x.rows, 1), segments);
  with_width<T>(
      can_vectorize(x, vector_width<T>) && can_vectorize(VectorView{to, dtype_of<To>, x.cols}, vector_width<T>),
      [&](auto chosen) {
        constexpr int width = decltype(chosen)::value;
        const dim3 grid(static_cast<unsigned>(ceil_div(x.cols, kLanes * width)), static_cast<unsigned>(segments));
        HEDDLE_LAUNCH(context, (sum_segments<T, To, width>), grid, dim3(kLanes, kDepth), 0, x, rows_per_segment, to,
                      add);
      });
}

// Enough for a large GPU, with at least 4 rows for each thread, and no more than the scratch memory holds.
int64_t choose_segments(int64_t rows, int64_t cols, size_t size) {
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
      const int64_t segments = choose_segments(x.rows, x.cols, sizeof(A));
      if (segments == 1) return sum_rows<T>(context, x, 1, sums, add);
      A* partials = static_cast<A*>(scratch(context));
      sum_rows<T>(context, x, segments, partials, false);
      const RowsView parts = {partials, accumulate_type(x.dtype), segments, x.cols, x.cols};
      sum_rows<A>(context, parts, 1, sums, add);
    });
  });
}

}  // namespace heddle::kernels::cuda
