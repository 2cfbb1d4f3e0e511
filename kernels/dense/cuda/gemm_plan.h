// A product of cuBLASLt: its description, and the algorithm that computes it.                kernels/dense/cuda/gemm.cu
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <system_error>

#include "core/runtime/stream.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/types.h"
#include "kernels/dense/gemm_algorithms.h"

namespace heddle::kernels::cuda {

inline void check_blas(cublasStatus_t status, const char* expression, const char* file, int line) {
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

inline cudaDataType_t blas_type(DType dtype) {
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
inline uint32_t alignment_of(const void* data) {
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
      : handle_(handle),
        a_(problem.operands, problem.transpose_a ? problem.k : problem.m, problem.transpose_a ? problem.m : problem.k,
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
    const Offer first = offered(problem, 1);
    found_ = first.count > 0;
    if (found_) algorithm_ = first.results.front().algo;
  }
  ~Plan() { cublasLtMatmulDescDestroy(product_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Whether the library has an algorithm for the problem.
  bool found() const { return found_; }

  // Takes the algorithm that is known for the problem, or else finds the fastest by overwriting `c` with the product.
  void settle(Context& context, const Problem& problem, const void* a, const void* b, void* c, const void* bias,
              bool add) {
    auto& algorithms = context.resource<GemmAlgorithms>();
    if (is_settled_ || !algorithms.search) return;
    const bool is_small =
        static_cast<double>(problem.m) * static_cast<double>(problem.n) * static_cast<double>(problem.k) <
        kSearchedProducts;
    const std::string key = key_of(context, problem);
    const auto known = algorithms.known.find(key);
    if (is_small || (known != algorithms.known.end() && take(known->second))) {
      is_settled_ = true;
    } else if (!add && !is_capturing(context)) {
      algorithm_ = find_fastest(context, problem, a, b, c, bias);
      algorithms.known[key] = text_of(algorithm_);
      is_settled_ = true;
    }
  }

  void run(Context& context, const void* a, const void* b, void* c, const void* bias, bool add) {
    run(context, algorithm_, a, b, c, bias, add);
  }

 private:
  static constexpr double kSearchedProducts = 0x1p29;  // multiplications, each with an addition

  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    HEDDLE_BLAS_CHECK(cublasLtMatmulDescSetAttribute(product_, attribute, &value, sizeof(value)));
  }

  void run(Context& context, const cublasLtMatmulAlgo_t& algorithm, const void* a, const void* b, void* c,
           const void* bias, bool add) {
    if (bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    const float single[2] = {1.0f, add ? 1.0f : 0.0f};
    const double twice[2] = {1.0, add ? 1.0 : 0.0};
    const void* alpha = is_double_ ? static_cast<const void*>(&twice[0]) : &single[0];
    const void* beta = is_double_ ? static_cast<const void*>(&twice[1]) : &single[1];
    HEDDLE_BLAS_CHECK(cublasLtMatmul(
        handle_, product_, alpha, b, b_.get(), a, a_.get(), beta, c, c_.get(), c, c_.get(), &algorithm,
        static_cast<char*>(scratch(context)) + Scratch::kBytes - workspace_bytes_, workspace_bytes_, context.stream()));
  }

  static constexpr int kMostOffered = 16;

  // Algorithms for a problem, the one that the library thinks is the fastest first.
  struct Offer {
    std::array<cublasLtMatmulHeuristicResult_t, kMostOffered> results;
    int count = 0;
  };

  // At most `most` algorithms for the problem.
  Offer offered(const Problem& problem, int most) const {
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
    Offer offer;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, product_, b_.get(), a_.get(), c_.get(), c_.get(), preference, most,
                                       offer.results.data(), &offer.count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) HEDDLE_BLAS_CHECK(status);
    return offer;
  }

  // The fastest of several calls counts for each, since others may use the device, too.
  cublasLtMatmulAlgo_t find_fastest(Context& context, const Problem& problem, const void* a, const void* b, void* c,
                                    const void* bias) {
    constexpr int kCalls = 4;
    Event start(context), end(context);
    cublasLtMatmulAlgo_t fastest = algorithm_;
    double least = std::numeric_limits<double>::infinity();
    const Offer offer = offered(problem, kMostOffered);
    for (int i = 0; i < offer.count; ++i) {
      if (offer.results[static_cast<size_t>(i)].state != CUBLAS_STATUS_SUCCESS) continue;
      const cublasLtMatmulAlgo_t& algorithm = offer.results[static_cast<size_t>(i)].algo;
      run(context, algorithm, a, b, c, bias, false);
      for (int call = 0; call < kCalls; ++call) {
        start.record(context.stream());
        run(context, algorithm, a, b, c, bias, false);
        end.record(context.stream());
        end.synchronize();
        const double milliseconds = start.milliseconds_to(end);
        if (milliseconds >= least) continue;
        least = milliseconds;
        fastest = algorithm;
      }
    }
    return fastest;
  }

  static bool is_capturing(const Context& context) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    HEDDLE_CUDA_CHECK(cudaStreamIsCapturing(context.stream(), &status));
    return status != cudaStreamCaptureStatusNone;
  }

  static std::string key_of(const Context& context, const Problem& problem) {
    std::string device = context.properties().name;
    std::replace(device.begin(), device.end(), ' ', '_');
    return fmt::format("{}/cublasLt-{}/{}-{}/{}{}{}/{}x{}x{}/{}-{}-{}/{}-{}-{}", device, cublasLtGetVersion(),
                       name(problem.operands), name(problem.result), problem.transpose_a ? 't' : 'n',
                       problem.transpose_b ? 't' : 'n', problem.bias ? 'b' : 'n', problem.m, problem.n, problem.k,
                       problem.stride_a, problem.stride_b, problem.stride_c, problem.alignment_a, problem.alignment_b,
                       problem.alignment_c);
  }

  // An algorithm is eight words without pointers, which the same version of the library may be given again.
  static std::string text_of(const cublasLtMatmulAlgo_t& algorithm) {
    std::string text;
    for (const uint64_t word : algorithm.data) text += fmt::format("{:016x}", word);
    return text;
  }

  // Takes the algorithm of this text if it is one that computes the problem.
  bool take(const std::string& text) {
    constexpr size_t kDigits = 16;
    cublasLtMatmulAlgo_t algorithm;
    if (text.size() != std::size(algorithm.data) * kDigits) return false;
    for (size_t i = 0; i < std::size(algorithm.data); ++i) {
      const char* begin = text.data() + i * kDigits;
      const auto [end, error] = std::from_chars(begin, begin + kDigits, algorithm.data[i], 16);
      if (error != std::errc{} || end != begin + kDigits) return false;
    }
    cublasLtMatmulHeuristicResult_t result;
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(handle_, product_, b_.get(), a_.get(), c_.get(), c_.get(), &algorithm, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > workspace_bytes_) return false;
    algorithm_ = algorithm;
    return true;
  }

  cublasLtHandle_t handle_;
  MatrixLayout a_, b_, c_;
  size_t workspace_bytes_;
  bool is_double_;
  bool found_ = false;
  bool is_settled_ = false;  // the algorithm is the one that GemmAlgorithms knows, or small as the problem is
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

  Plan& plan(const Problem& problem) { return plans_.try_emplace(problem, handle_, problem).first->second; }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::map<Problem, Plan> plans_;
};

}  // namespace heddle::kernels::cuda
