// The C++ types that hold each DType on the host, and the map between the two.
#pragma once

#include <Eigen/Core>

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

}  // namespace heddle
