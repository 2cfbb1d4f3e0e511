// Matrix products by cuBLASLt: c (=|+=) op(a) op(b) + bias.                                  kernels/dense/gemm.h
// Long sums of few results are split (multiply_in_splits), those of a vector are not the library's (vector_product.cu).
// cuBLASLt is column-major, so it computes c^T = op(b)^T op(a)^T: the same memory, with a and b exchanged. The bias is
// its epilogue, and += is beta = 1. Split-K partial sums are added up through a workspace in a fixed order, never by
// atomics, so results are the same bits every time. float32 is multiplied as float32,
// never as tf32.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/types.h"
#include "kernels/dense/cuda/gemm_splits.h"
#include "kernels/dense/cuda/vector_product.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* expression, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("{}:{}: {} failed: {}", file, line, expression, cublasLtGetStatusString(status));
}
#define HEDDLE_BLAS_CHECK(expression) check_blas((expression), #expression, __FILE__, __LINE__)

// Everything that the choice of an algorithm depends on.
struct Problem {
  DType operands, result;
  bool transpose_a, transpose_b, bias;
  int64_t m, n, k;
  int64_t stride_a, stride_b, stride_c;
  uint32_t alignment_a, alignment_b, alignment_c;
  // Several products of one shape, whose operands and results are so many elements apart.
  int64_t batches = 1, batch_a = 0, batch_b = 0, batch_c = 0;
  // Of the context's scratch memory, from its end.
  size_t workspace_bytes = Scratch::kBytes;
  auto operator<=>(const Problem&) const = default;
};

cudaDataType_t blas_type(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return CUDA_R_64F;
    case DType::float32:
      return CUDA_R_32F;
    case DType::bfloat16:
      return CUDA_R_16BF;
    case DType::float16:
      return CUDA_R_16F;
    default:
      fail("[gemm] expected real numbers, found {}", name(dtype));
  }
}

// The largest power of two, up to 256, that divides the address.
uint32_t alignment_of(const void* data) {
  return uint32_t{1} << std::countr_zero(reinterpret_cast<uintptr_t>(data) | uintptr_t{256});
}

// A row-major matrix, described to cuBLASLt as its column-major transpose.
class MatrixLayout {
 public:
  MatrixLayout(DType dtype, int64_t rows, int64_t cols, int64_t stride, int64_t batches, int64_t batch_stride) {
    HEDDLE_BLAS_CHECK(cublasLtMatrixLayoutCreate(&layout_, blas_type(dtype), static_cast<uint64_t>(cols),
                                                 static_cast<uint64_t>(rows), stride));
    if (batches == 1) return;
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<int32_t>(batches));
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, batch_stride);
  }
  ~MatrixLayout() { cublasLtMatrixLayoutDestroy(layout_); }
  MatrixLayout(const MatrixLayout&) = delete;
  MatrixLayout& operator=(const MatrixLayout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  template <class Value>
  void set(cublasLtMatrixLayoutAttribute_t attribute, const Value& value) {
    HEDDLE_BLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout_, attribute, &value, sizeof(value)));
  }

  cublasLtMatrixLayout_t layout_ = nullptr;
};

// The descriptions and the algorithm of a problem, which are found once and used for every product of that problem.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const Problem& problem)
      : a_(problem.operands, problem.transpose_a ? problem.k : problem.m, problem.transpose_a ? problem.m : problem.k,
           problem.stride_a, problem.batches, problem.batch_a),
        b_(problem.operands, problem.transpose_b ? problem.n : problem.k, problem.transpose_b ? problem.k : problem.n,
           problem.stride_b, problem.batches, problem.batch_b),
        c_(problem.result, problem.m, problem.n, problem.stride_c, problem.batches, problem.batch_c),
        workspace_bytes_(problem.workspace_bytes),
        is_double_(problem.operands == DType::float64) {
    const cublasComputeType_t compute = is_double_ ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
    HEDDLE_BLAS_CHECK(cublasLtMatmulDescCreate(&product_, compute, is_double_ ? CUDA_R_64F : CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, problem.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, problem.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (problem.bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    found_ = choose_algorithm(handle, problem);
  }
  ~Plan() { cublasLtMatmulDescDestroy(product_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Whether the library has an algorithm for the problem.
  bool found() const { return found_; }

  void run(Context& context, cublasLtHandle_t handle, const void* a, const void* b, void* c, const void* bias,
           bool add) {
    if (bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float single[2] = {1.0f, add ? 1.0f : 0.0f};
    const double twice[2] = {1.0, add ? 1.0 : 0.0};
    const void* alpha = is_double_ ? static_cast<const void*>(&twice[0]) : &single[0];
    const void* beta = is_double_ ? static_cast<const void*>(&twice[1]) : &single[1];
    HEDDLE_BLAS_CHECK(cublasLtMatmul(
        handle, product_, alpha, b, b_.get(), a, a_.get(), beta, c, c_.get(), c, c_.get(), &algorithm_,
        static_cast<char*>(scratch(context)) + Scratch::kBytes - workspace_bytes_, workspace_bytes_, context.stream()));
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    HEDDLE_BLAS_CHECK(cublasLtMatmulDescSetAttribute(product_, attribute, &value, sizeof(value)));
  }

  bool choose_algorithm(cublasLtHandle_t handle, const Problem& problem) {
    cublasLtMatmulPreference_t preference = nullptr;
    HEDDLE_BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      HEDDLE_BLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes_});
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.alignment_b);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.alignment_a);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.alignment_c);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.alignment_c);
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, product_, b_.get(), a_.get(), c_.get(),
                                                                 c_.get(), preference, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) HEDDLE_BLAS_CHECK(status);
    if (found == 0) return false;
    algorithm_ = best.algo;
    return true;
  }

  MatrixLayout a_, b_, c_;
  size_t workspace_bytes_;
  bool is_double_;
  bool found_ = false;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_;
};

// The cuBLASLt handle and the plans of one context.
class Products {
 public:
  explicit Products(Context& context) {
    use_device(context);
    HEDDLE_BLAS_CHECK(cublasLtCreate(&handle_));
  }
  ~Products() {
    plans_.clear();
    cublasLtDestroy(handle_);
  }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  cublasLtHandle_t handle() const { return handle_; }
  Plan& plan(const Problem& problem) { return plans_.try_emplace(problem, handle_, problem).first->second; }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::map<Problem, Plan> plans_;
};

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
  products.plan(whole).run(context, products.handle(), args.a.data, args.b.data, partials, nullptr, false);
  if (rest.k > 0) {
    products.plan(rest).run(context, products.handle(), a_of_rest, b_of_rest, partial_of_rest, nullptr, false);
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
  plan.run(context, products.handle(), args.a.data, args.b.data, c.data, problem.bias ? args.bias.data : nullptr,
           bias_first || args.c.mode == GradientMode::accumulate);
}

}  // namespace heddle::kernels::cuda
