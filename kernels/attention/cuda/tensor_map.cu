#include "core/runtime/cuda_check.h"
#include "core/runtime/error.h"
#include "kernels/attention/cuda/tensor_map.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int64_t kPanel = 64;  // features of a panel, 128 bytes

decltype(&cuTensorMapEncodeTiled) find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  HEDDLE_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  check(found == cudaDriverEntryPointSuccess,
        "the CUDA driver has no cuTensorMapEncodeTiled, expected that of CUDA 12");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Whether the copy engine can read the view's rows.
bool has_rows(const HeadsView& view) {
  const auto fits = [](int64_t extent, int64_t stride) {
    return extent == 1 || (stride > 0 && stride % 8 == 0 && stride < int64_t{1} << 38);
  };
  return size_of(view.dtype) == 2 && view.dim > 0 && view.batch > 0 && view.length > 0 && view.heads > 0 &&
         view.length < int64_t{1} << 31 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         fits(view.batch, view.batch_stride) && fits(view.length, view.length_stride) &&
         fits(view.heads, view.head_stride);
}

cuuint64_t extent(int64_t value) { return static_cast<cuuint64_t>(value); }
cuuint64_t bytes(int64_t extent, int64_t stride) {
  return static_cast<cuuint64_t>(extent == 1 ? 2 * kPanel : 2 * stride);
}

template <int RANK>
CUtensorMap encode(const HeadsView& view, const cuuint64_t (&extents)[RANK], const cuuint64_t (&strides)[RANK - 1],
                   const cuuint32_t (&box)[RANK], CUtensorMapSwizzle swizzle) {
  static const auto encode_tiled = find_encode();
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult code = encode_tiled(
      &map, view.dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, RANK,
      view.data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(code == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed with code {} for a view ({}, {}, {}, {})",
        static_cast<int>(code), view.batch, view.length, view.heads, view.dim);
  return map;
}

}  // namespace

bool can_map(const HeadsView& view) { return has_rows(view) && view.dim % kPanel == 0; }
bool can_map_features(const HeadsView& view) { return has_rows(view) && view.dim % 8 == 0; }

CUtensorMap tensor_map(const HeadsView& view, int rows) {
  return encode<5>(
      view, {extent(kPanel), extent(view.length), extent(view.dim / kPanel), extent(view.heads), extent(view.batch)},
      {bytes(view.length, view.length_stride), 2 * kPanel, bytes(view.heads, view.head_stride),
       bytes(view.batch, view.batch_stride)},
      {kPanel, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(view.dim / kPanel), 1, 1},
      CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap feature_map(const HeadsView& view, int rows, int cols) {
  return encode<4>(view, {extent(view.dim), extent(view.length), extent(view.heads), extent(view.batch)},
                   {bytes(view.length, view.length_stride), bytes(view.heads, view.head_stride),
                    bytes(view.batch, view.batch_stride)},
                   {static_cast<cuuint32_t>(cols), static_cast<cuuint32_t>(rows), 1, 1},
                   cols == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_32B);
}

}  // namespace heddle::kernels::cuda
