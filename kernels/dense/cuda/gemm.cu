// Matrix products by cuBLASLt: c (=|+=) op(a) op(b) + bias.                                  kernels/dense/gemm.h
// Long sums of few results are split (multiply_in_splits), those of a vector are not the library's (vector_product.cu).
// cuBLASLt is column-major, so it computes c^T = op(b)^T op(a)^T: the same memory, with a and b exchanged. The bias is
// its epilogue, and += is beta = 1. Split-K partial sums are added up through a workspace in a fixed order, never by
// atomics, so one algorithm gives the same bits every time. float32 is multiplied as float32, never as tf32.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/types.h"
#include "kernels/dense/cuda/gemm_plan.h"
#include "kernels/dense/cuda/gemm_splits.h"
#include "kernels/dense/cuda/vector_product.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {
namespace {

// c (=|+=) bias in every row, 0 where `bias` is null.
template <class T, class C>
__global__ void __launch_bounds__(256) start_rows(RowsView c, const T* bias, bool add) {
  const int64_t total = c.rows * c.cols;
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < total; i += gridDim.x * int64_t{256}) {
    const int64_t col = i % c.cols;
    C* place = row<C>(c, i / c.cols) + col;
    accumulate_t<C> value = bias != nullptr ? static_cast<accumulate_t<C>>(widen(bias[col])) : accumulate_t<C>(0);
    if (add) value += widen(*place);
    *place = narrow<C>(value);
  }
}

void start_with_bias(Context& context, const GemmArgs& args) {
  const RowsView& c = args.c.view;
  const bool add = args.c.mode == GradientMode::accumulate;
  if (add && !args.bias) return;
  visit_floating(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    visit_same_or_accumulate<T>(c.dtype, args.a.dtype, [&](auto result) {
      using C = decltype(result);
      HEDDLE_LAUNCH(context, (start_rows<T, C>), grid_for(context, c.rows * c.cols, 256, 8), 256, 0, c,
                    vector<const T>(args.bias), add);
    });
  });
}

// Whether the epilogue of cuBLASLt can add the bias: it takes an aligned bias of c's dtype, and none in double.
bool has_epilogue(const GemmArgs& args) {
  return args.bias && args.bias.dtype == args.c.view.dtype && args.bias.dtype != DType::float64 &&
         alignment_of(args.bias.data) >= 16;
}

Problem describe(const GemmArgs& args, int64_t k) {
  const RowsView& c = args.c.view;
  return {.operands = args.a.dtype,
          .result = c.dtype,
          .transpose_a = args.transpose_a == Transpose::yes,
          .transpose_b = args.transpose_b == Transpose::yes,
          .bias = has_epilogue(args),
          .m = c.rows,
          .n = c.cols,
          .k = k,
          .stride_a = args.a.row_stride,
          .stride_b = args.b.row_stride,
          .stride_c = c.row_stride,
          .alignment_a = alignment_of(args.a.data),
          .alignment_b = alignment_of(args.b.data),
          .alignment_c = alignment_of(c.data)};
}

// `offset` elements after the start of a matrix.
const void* element(const RowsView& x, int64_t offset) {
  return static_cast<const char*>(x.data) + offset * static_cast<int64_t>(size_of(x.dtype));
}

// A small product of a long sum, as many products of parts of the sum, whose results are then added up: a kernel of the
// library adds up all terms that it is given one after the other. Returns false and does nothing for other products.
bool multiply_in_splits(Context& context, const GemmArgs& args, int64_t k) {
  constexpr int64_t kLongSum = 65536, kMostResults = 16384, kSmallestDepth = 1024;
  constexpr int64_t kRoom = static_cast<int64_t>(Scratch::kBytes) / 2;
  const RowsView& c = args.c.view;
  const int64_t size = c.rows * c.cols;
  if (k < kLongSum || size > kMostResults) return false;
  const DType sums = accumulate_type(args.a.dtype);
  const int64_t most = kRoom / (size * static_cast<int64_t>(size_of(sums))) - 1;  // one is that of the rest
  const int64_t depth = std::max(kSmallestDepth, ceil_div(ceil_div(k, most), 64) * 64);
  Problem whole = describe(args, depth);
  whole.bias = false;
  whole.result = sums;
  whole.stride_c = c.cols;
  whole.workspace_bytes = Scratch::kBytes / 2;
  Problem rest = whole;  // the last terms, fewer than depth
  whole.batches = k / depth;
  whole.batch_a = whole.transpose_a ? depth * whole.stride_a : depth;
  whole.batch_b = whole.transpose_b ? depth : depth * whole.stride_b;
  whole.batch_c = size;
  rest.k = k % depth;
  char* partials = static_cast<char*>(scratch(context));
  char* partial_of_rest = partials + whole.batches * size * static_cast<int64_t>(size_of(sums));
  const void* a_of_rest = element(args.a, whole.batches * whole.batch_a);
  const void* b_of_rest = element(args.b, whole.batches * whole.batch_b);
  rest.alignment_a = alignment_of(a_of_rest);
  rest.alignment_b = alignment_of(b_of_rest);
  rest.alignment_c = alignment_of(partial_of_rest);
  whole.alignment_c = alignment_of(partials + size * static_cast<int64_t>(size_of(sums)));
  auto& products = context.resource<Products>();
  if (!products.plan(whole).found() || (rest.k > 0 && !products.plan(rest).found())) return false;
  products.plan(whole).run(context, args.a.data, args.b.data, partials, nullptr, false);
  if (rest.k > 0) {
    products.plan(rest).run(context, a_of_rest, b_of_rest, partial_of_rest, nullptr, false);
  }
  add_scratch_splits(context, args, whole.batches + (rest.k > 0 ? 1 : 0));
  return true;
}

}  // namespace

void gemm(Context& context, const GemmArgs& args) {
  const RowsView& c = args.c.view;
  const int64_t k = args.transpose_a == Transpose::yes ? args.a.rows : args.a.cols;
  if (c.rows == 0 || c.cols == 0) return;
  if (k == 0) return start_with_bias(context, args);
  use_device(context);
  if (multiply_vector(context, args, k) || multiply_in_splits(context, args, k)) return;

  Problem problem = describe(args, k);
  auto& products = context.resource<Products>();
  if (problem.bias && !products.plan(problem).found()) problem.bias = false;
  Plan& plan = products.plan(problem);
  check(plan.found(), "[gemm] cuBLASLt has no algorithm for {} ({}, {}) x ({}, {}) into {}", name(problem.operands),
        problem.m, k, k, problem.n, name(problem.result));
  const bool bias_first = args.bias && !problem.bias;
  if (bias_first) start_with_bias(context, args);
  const void* bias = problem.bias ? args.bias.data : nullptr;
  const bool add = bias_first || args.c.mode == GradientMode::accumulate;
  plan.settle(context, problem, args.a.data, args.b.data, c.data, bias, add);
  plan.run(context, args.a.data, args.b.data, c.data, bias, add);
}

}  // namespace heddle::kernels::cuda
