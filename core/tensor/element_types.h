// The C++ types that hold each DType on the host, and the map between the two.
#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "core/tensor/dtype.h"

namespace heddle {

using bfloat16 = Eigen::bfloat16;
using float16 = Eigen::half;

template <class T>
struct dtype_of;
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::float64;
};
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::float32;
};
template <>
struct dtype_of<bfloat16> {
  static constexpr DType value = DType::bfloat16;
};
template <>
struct dtype_of<float16> {
  static constexpr DType value = DType::float16;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::int32;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::int64;
};

// Calls visit(T{}) with the C++ type of a dtype.
template <class Visit>
void visit_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::float64:
      return visit(double{});
    case DType::float32:
      return visit(float{});
    case DType::bfloat16:
      return visit(bfloat16{});
    case DType::float16:
      return visit(float16{});
    case DType::int32:
      return visit(int32_t{});
    case DType::int64:
      return visit(int64_t{});
  }
}

}  // namespace heddle
