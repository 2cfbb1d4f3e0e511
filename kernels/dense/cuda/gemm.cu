// Matrix products by cuBLASLt: c (=|+=) op(a) op(b) + bias.                                  kernels/dense/gemm.h
// cuBLASLt is column-major, so it computes c^T = op(b)^T op(a)^T: the same memory, with a and b exchanged. The bias is
// its epilogue, and += is beta = 1. Split-K partial sums are added up through a workspace in a fixed order, never by
// atomics, so results are the same bits every time. float32 is multiplied as float32,
// never as tf32.
#include <cublasLt.h>

#include <bit>
#include <compare>
#include <cstdint>
#include <map>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/types.h"
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
  MatrixLayout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    HEDDLE_BLAS_CHECK(cublasLtMatrixLayoutCreate(&layout_, blas_type(dtype), static_cast<uint64_t>(cols),
                                                 static_cast<uint64_t>(rows), stride));
  }
  ~MatrixLayout() { cublasLtMatrixLayoutDestroy(layout_); }
  MatrixLayout(const MatrixLayout&) = delete;
  MatrixLayout& operator=(const MatrixLayout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

// The descriptions and the algorithm of a problem, which are found once and used for every product of that problem.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const Problem& problem)
      : a_(problem.operands, problem.transpose_a ? problem.k : problem.m, problem.transpose_a ? problem.m : problem.k,
           problem.stride_a),
        b_(problem.operands, problem.transpose_b ? problem.n : problem.k, problem.transpose_b ? problem.k : problem.n,
           problem.stride_b),
        c_(problem.result, problem.m, problem.n, problem.stride_c),
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

  void run(Context& context, cublasLtHandle_t handle, const GemmArgs& args, const void* bias, bool add) {
    if (bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float single[2] = {1.0f, add ? 1.0f : 0.0f};
    const double twice[2] = {1.0, add ? 1.0 : 0.0};
    const void* alpha = is_double_ ? static_cast<const void*>(&twice[0]) : &single[0];
    const void* beta = is_double_ ? static_cast<const void*>(&twice[1]) : &single[1];
    void* c = args.c.view.data;
    HEDDLE_BLAS_CHECK(cublasLtMatmul(handle, product_, alpha, args.b.data, b_.get(), args.a.data, a_.get(), beta, c,
                                     c_.get(), c, c_.get(), &algorithm_, scratch(context), Scratch::kBytes,
                                     context.stream()));
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
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{Scratch::kBytes});
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

}  // namespace

void gemm(Context& context, const GemmArgs& args) {
  const RowsView& c = args.c.view;
  const bool transpose_a = args.transpose_a == Transpose::yes;
  const int64_t k = transpose_a ? args.a.rows : args.a.cols;
  if (c.rows == 0 || c.cols == 0) return;
  if (k == 0) return start_with_bias(context, args);

  Problem problem = {.operands = args.a.dtype,
                     .result = c.dtype,
                     .transpose_a = transpose_a,
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
  use_device(context);
  auto& products = context.resource<Products>();
  if (problem.bias && !products.plan(problem).found()) problem.bias = false;
  Plan& plan = products.plan(problem);
  check(plan.found(), "[gemm] cuBLASLt has no algorithm for {} ({}, {}) x ({}, {}) into {}", name(problem.operands),
        problem.m, k, k, problem.n, name(problem.result));
  const bool bias_first = args.bias && !problem.bias;
  if (bias_first) start_with_bias(context, args);
  plan.run(context, products.handle(), args, problem.bias ? args.bias.data : nullptr,
           bias_first || args.c.mode == GradientMode::accumulate);
}

}  // namespace heddle::kernels::cuda
