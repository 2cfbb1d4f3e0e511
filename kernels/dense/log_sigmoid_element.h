// The arithmetic of one element of log_sigmoid, for both devices. Only exponentials of numbers up to 0 are taken, so
// that digits are kept at both ends.
#pragma once

#include <cmath>

#include "kernels/common/types.h"

namespace heddle::kernels {

// log(1 / (1 + exp(-x)))
template <class A>
HEDDLE_HOST_DEVICE_INLINE A log_sigmoid_of(A x) {
  return (x > A(0) ? A(0) : x) - std::log1p(std::exp(-std::abs(x)));
}

// Its derivative 1 / (1 + exp(x)).
template <class A>
HEDDLE_HOST_DEVICE_INLINE A log_sigmoid_derivative(A x) {
  const A small = std::exp(-std::abs(x));
  return (x > A(0) ? small : A(1)) / (A(1) + small);
}

}  // namespace heddle::kernels
