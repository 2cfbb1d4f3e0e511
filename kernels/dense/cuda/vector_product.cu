// Products of a matrix and a vector with long sums. Each sum is cut into splits, whose number depends on the sizes
// alone. The partial sums go to the context's scratch memory, and a second launch adds them up (gemm_splits.h). The
// matrix is read once.
#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/reduce.h"
#include "kernels/dense/cuda/gemm_splits.h"
#include "kernels/dense/cuda/vector_product.h"

namespace heddle::kernels::cuda {
namespace {

// Sums of fewer terms are left to the library.
constexpr int64_t kLongSum = 8192;
constexpr int kLanes = 32, kDepth = 8;

// partials[split][i] (=) the sum over the terms p of a split of matrix[i][p] * weights[p].
template <class T>
struct VectorProduct {
  const T *matrix, *weights;
  int64_t result_stride, term_stride, weight_stride;
  int64_t size, terms, terms_of_split;
  accumulate_t<T>* partials;

  __device__ __forceinline__ accumulate_t<T> term(int64_t i, int64_t p) const {
    return widen(matrix[i * result_stride + p * term_stride]) * widen(weights[p * weight_stride]);
  }
  __device__ __forceinline__ int64_t begin() const { return blockIdx.y * terms_of_split; }
  __device__ __forceinline__ int64_t end() const { return min(terms, begin() + terms_of_split); }
};

// One warp for each result; grid: (results / kDepth, splits). For terms that lie side by side, or few results.
template <class T>
__global__ void __launch_bounds__(kLanes* kDepth) sum_by_warps(const __grid_constant__ VectorProduct<T> p) {
  const int64_t i = blockIdx.x * int64_t{kDepth} + threadIdx.y;
  if (i >= p.size) return;
  CompensatedSum<accumulate_t<T>> own;
#pragma unroll 8
  for (int64_t j = p.begin() + threadIdx.x; j < p.end(); j += kLanes) own.add(p.term(i, j));
  const accumulate_t<T> sum = group_sum(own.value());
  if (threadIdx.x == 0) p.partials[blockIdx.y * p.size + i] = sum;
}

// One thread of kDepth for each result; grid: (results / kLanes, splits). For results that lie side by side.
template <class T>
__global__ void __launch_bounds__(kLanes* kDepth) sum_by_lanes(const __grid_constant__ VectorProduct<T> p) {
  using A = accumulate_t<T>;
  __shared__ A shared[kDepth][kLanes];
  const int64_t i = blockIdx.x * int64_t{kLanes} + threadIdx.x;
  CompensatedSum<A> own;
  if (i < p.size) {
#pragma unroll 8
    for (int64_t j = p.begin() + threadIdx.y; j < p.end(); j += kDepth) own.add(p.term(i, j));
  }
  shared[threadIdx.y][threadIdx.x] = own.value();
  __syncthreads();
  if (threadIdx.y != 0 || i >= p.size) return;
  CompensatedSum<A> sum;
  for (int y = 0; y < kDepth; ++y) sum.add(shared[y][threadIdx.x]);
  p.partials[blockIdx.y * p.size + i] = sum.value();
}

// Strides of op(x) from row to row and from column to column.
struct Strides {
  int64_t row, col;
  Strides(const RowsView& x, Transpose transpose)
      : row(transpose == Transpose::no ? x.row_stride : 1), col(transpose == Transpose::no ? 1 : x.row_stride) {}
};

template <class T>
VectorProduct<T> describe(const GemmArgs& args, int64_t k) {
  const RowsView& c = args.c.view;
  const Strides a(args.a, args.transpose_a), b(args.b, args.transpose_b);
  VectorProduct<T> product{};
  product.terms = k;
  if (c.cols == 1) {
    product.matrix = static_cast<const T*>(args.a.data);
    product.result_stride = a.row;
    product.term_stride = a.col;
    product.weights = static_cast<const T*>(args.b.data);
    product.weight_stride = b.row;
    product.size = c.rows;
  } else {
    product.matrix = static_cast<const T*>(args.b.data);
    product.result_stride = b.col;
    product.term_stride = b.row;
    product.weights = static_cast<const T*>(args.a.data);
    product.weight_stride = a.col;
    product.size = c.cols;
  }
  return product;
}

}  // namespace

bool multiply_vector(Context& context, const GemmArgs& args, int64_t k) {
  const RowsView& c = args.c.view;
  if ((c.rows > 1 && c.cols > 1) || k < kLongSum) return false;
  int64_t splits = 0;
  visit_floating(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    VectorProduct<T> product = describe<T>(args, k);
    const bool by_warps = product.term_stride == 1 || product.size < kLanes;
    const int64_t blocks = ceil_div(product.size, by_warps ? kDepth : kLanes);
    const int64_t room = static_cast<int64_t>(Scratch::kBytes / sizeof(A)) / product.size;
    splits = std::min({ceil_div(1024, blocks), ceil_div(k, 1024), room});
    if (splits == 0) return;
    product.terms_of_split = ceil_div(k, splits);
    product.partials = static_cast<A*>(scratch(context));
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
    HEDDLE_LAUNCH(context, (by_warps ? sum_by_warps<T> : sum_by_lanes<T>), grid, dim3(kLanes, kDepth), 0, product);
  });
  if (splits == 0) return false;
  add_scratch_splits(context, args, splits);
  return true;
}

}  // namespace heddle::kernels::cuda
