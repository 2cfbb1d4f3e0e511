// Activations and their derivatives on the device, for arithmetic on storage type T. kernels/activation.h bf16 and fp16
// take the hardware's exponential (relative error about 2^-21 at |x| < 10, far below their rounding); float takes expf
// and double exp.
#pragma once

#include <type_traits>

#include "kernels/activation.h"
#include "kernels/cuda/detail/types.h"

namespace heddle::kernels::cuda {

template <class T>
__device__ __forceinline__ accumulate_t<T> exponential(accumulate_t<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return exp(x);
  } else if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

template <class A>
__device__ __forceinline__ A logarithm(A x) {
  if constexpr (std::is_same_v<A, double>) {
    return log(x);
  } else {
    return logf(x);
  }
}

template <class T>
__device__ __forceinline__ accumulate_t<T> sigmoid(accumulate_t<T> x) {
  using A = accumulate_t<T>;
  const A denominator = A(1) + exponential<T>(-x);
  if constexpr (sizeof(T) == 2) {
    return __fdividef(1.0f, denominator);  // 0 where the exponential overflows
  } else {
    return A(1) / denominator;
  }
}

template <Activation act, class T>
__device__ __forceinline__ accumulate_t<T> activate(accumulate_t<T> x) {
  using A = accumulate_t<T>;
  if constexpr (act == Activation::relu) return x > A(0) ? x : A(0);
  if constexpr (act == Activation::sigmoid) return sigmoid<T>(x);
  if constexpr (act == Activation::silu) return x * sigmoid<T>(x);
  if constexpr (act == Activation::elu1) return x > A(0) ? x + A(1) : exponential<T>(x);
  return x;
}

// The value and the derivative, which share their exponential.
template <class A>
struct Activated {
  A value, derivative;
};
template <Activation act, class T>
__device__ __forceinline__ Activated<accumulate_t<T>> activate_with_derivative(accumulate_t<T> x) {
  using A = accumulate_t<T>;
  if constexpr (act == Activation::relu) return x > A(0) ? Activated<A>{x, A(1)} : Activated<A>{A(0), A(0)};
  if constexpr (act == Activation::sigmoid) {
    const A s = sigmoid<T>(x);
    return {s, s * (A(1) - s)};
  }
  if constexpr (act == Activation::silu) {
    const A s = sigmoid<T>(x);
    return {x * s, s * (A(1) + x * (A(1) - s))};
  }
  if constexpr (act == Activation::elu1) {
    const A e = exponential<T>(x);
    return x > A(0) ? Activated<A>{x + A(1), A(1)} : Activated<A>{e, e};
  }
  return {x, A(1)};
}

// Calls visit(std::integral_constant<Activation, act>). On the device: one branch that all threads take together,
// cheaper to compile than a kernel for each activation. On the host: to choose among kernels.
template <class Visit>
__host__ __device__ __forceinline__ void visit_activation(Activation act, const Visit& visit) {
  switch (act) {
    case Activation::none:
      return visit(std::integral_constant<Activation, Activation::none>{});
    case Activation::relu:
      return visit(std::integral_constant<Activation, Activation::relu>{});
    case Activation::sigmoid:
      return visit(std::integral_constant<Activation, Activation::sigmoid>{});
    case Activation::silu:
      return visit(std::integral_constant<Activation, Activation::silu>{});
    case Activation::elu1:
      return visit(std::integral_constant<Activation, Activation::elu1>{});
  }
}

}  // namespace heddle::kernels::cuda
