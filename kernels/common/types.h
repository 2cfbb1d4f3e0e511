// What kernels of both devices know about the types they work on: the type of arithmetic, typed addresses in views (on
// the host and on the device), and the switch from a dtype to a C++ type (on the host).
#pragma once

#include <cstdint>

#include "core/runtime/error.h"
#include "kernels/common/views.h"

// Small functions of both devices. They are always inlined: compilers vectorise only loops without calls.
#if defined(__CUDACC__)
#define HEDDLE_HOST_DEVICE_INLINE __host__ __device__ __forceinline__
#else
#define HEDDLE_HOST_DEVICE_INLINE [[gnu::always_inline]] inline
#endif

namespace heddle::kernels {

// The type of arithmetic on values stored as T: double for double, float for the rest.
template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename AccumulateOf<T>::type;

// The elements of a vector.
template <class T>
HEDDLE_HOST_DEVICE_INLINE T* vector(const VectorView& view) {
  return static_cast<T*>(view.data);
}

// The elements of one row.
template <class T>
HEDDLE_HOST_DEVICE_INLINE T* row(const RowsView& view, int64_t index) {
  return static_cast<T*>(view.data) + index * view.row_stride;
}

// The features of one token of one head: view.dim elements.
template <class T>
HEDDLE_HOST_DEVICE_INLINE T* head(const HeadsView& view, int64_t batch, int64_t position, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + position * view.length_stride +
         head * view.head_stride;
}

// Calls visit(T{}) with the C++ type of a floating dtype. BFloat16 and Float16 are the device's types of 16 bits.
// Throws Error for a dtype of integers.
template <class BFloat16, class Float16, class Visit>
void visit_floating_as(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::float64:
      return visit(double{});
    case DType::float32:
      return visit(float{});
    case DType::bfloat16:
      return visit(BFloat16{});
    case DType::float16:
      return visit(Float16{});
    default:
      fail("a kernel for real numbers was given {}", name(dtype));
  }
}

// Calls visit(U{}), where U, the type of `dtype`, is T or its accumulate type: the dtypes that a parameter's gradient
// may have. `same` is the dtype of T. Throws Error for any other dtype.
template <class T, class Visit>
void visit_same_or_accumulate(DType dtype, DType same, const Visit& visit) {
  if (dtype == same) return visit(T{});
  check(dtype == accumulate_type(same), "a kernel for {} was given a destination of {}", name(same), name(dtype));
  if constexpr (sizeof(T) == 2) visit(accumulate_t<T>{});
}

}  // namespace heddle::kernels
