// The activations of kernels/common/activation.h and their derivatives on the device, for values of storage type T in
// the type of arithmetic. bf16 and fp16 use the hardware's exponential, whose relative error for |x| < 10 is about
// 2^-21, far below their rounding; float uses expf, double exp.
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels/common/activation.h"
#include "kernels/common/cuda/types.h"
#include "kernels/common/gelu.h"

namespace heddle::kernels::cuda {

inline constexpr float kLog2E = 1.44269504f;

// The hardware's 2^x and 1/x, with a relative error of 2^-22. Subnormal results are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

template <class T>
__device__ __forceinline__ accumulate_t<T> exponential(accumulate_t<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return exp(x);
  } else if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return fast_exp2(x * kLog2E);
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

// 1 / x; 0 where x is infinite.
template <class T>
__device__ __forceinline__ accumulate_t<T> reciprocal(accumulate_t<T> x) {
  if constexpr (sizeof(T) == 2) {
    return fast_reciprocal(x);
  } else {
    return accumulate_t<T>(1) / x;
  }
}

template <class T>
__device__ __forceinline__ accumulate_t<T> sigmoid(accumulate_t<T> x) {
  return reciprocal<T>(accumulate_t<T>(1) + exponential<T>(-x));
}

// What gelu.h computes with. The square of a 16-bit number is exact in float, so 16 bits need no wider exponents.
template <class T>
struct Arithmetic {
  using A = accumulate_t<T>;
  using Wide = std::conditional_t<sizeof(T) == 2, float, double>;
  static __device__ __forceinline__ A exponential(A x) { return cuda::exponential<T>(x); }
  static __device__ __forceinline__ A inverse(A x) { return reciprocal<T>(x); }
  static __device__ __forceinline__ A inverse_in_1_2(A x) { return reciprocal<T>(x); }
};

// The expensive term that the value and the derivative of an activation share: a sigmoid, an exponential, or nothing.
template <Activation act, class T>
__device__ __forceinline__ accumulate_t<T> activation_core(accumulate_t<T> x) {
  if constexpr (act == Activation::sigmoid || act == Activation::silu) return sigmoid<T>(x);
  if constexpr (act == Activation::elu1) return exponential<T>(x);
  return x;
}

// Value and derivative of an activation at x. `core` is activation_core(x); the compiler removes the one that is not
// used. Bounds on x keep infinity from meeting a factor of 0; fmin and fmax drop NaN, but the core keeps it.
template <Activation act, class A>
__device__ __forceinline__ Activated<A> activated(A x, A core) {
  if constexpr (act == Activation::relu) {
    const A value = x <= A(0) ? A(0) : x;
    return {value, x > A(0) ? A(1) : value};
  }
  if constexpr (act == Activation::sigmoid) return {core, core * (A(1) - core)};
  if constexpr (act == Activation::silu) {
    constexpr A kLargest = sizeof(A) == 4 ? A(0x1.fffffep127) : A(0x1.fffffffffffffp1023);
    const A above = fmax(x, -kLargest), bounded = fmin(above, kLargest);
    return {above * core, core * (A(1) + bounded * (A(1) - core))};
  }
  if constexpr (act == Activation::elu1) {
    return x > A(0) ? Activated<A>{x + A(1), A(1)} : Activated<A>{core, core};
  }
  return {x, A(1)};
}

// The same for any activation, those of elementwise kernels included.
template <Activation act, class T>
__device__ __forceinline__ Activated<accumulate_t<T>> activate_with_derivative(accumulate_t<T> x) {
  using A = accumulate_t<T>;
  if constexpr (act == Activation::relu2) {
    return x <= A(0) ? Activated<A>{A(0), A(0)} : Activated<A>{x * x, x + x};
  } else if constexpr (act == Activation::tanh) {
    // The derivative 1 - tanh(x)^2 without a difference.
    const A small = exponential<T>(A(-2) * fabs(x));
    const A scale = reciprocal<T>(A(1) + small);
    return {std::tanh(x), A(4) * small * scale * scale};
  } else if constexpr (act == Activation::gelu) {
    return gelu<Arithmetic<T>>(x);
  } else if constexpr (act == Activation::gelu_tanh) {
    return gelu_tanh<Arithmetic<T>>(x);
  } else {
    return activated<act>(x, activation_core<act, T>(x));
  }
}
template <Activation act, class T>
__device__ __forceinline__ accumulate_t<T> activate(accumulate_t<T> x) {
  return activate_with_derivative<act, T>(x).value;
}

// Calls visit(std::integral_constant<Activation, act>{}) for the activations of kActivations. On the device this is a
// branch that all threads take together: it makes less code than one kernel for each activation. On the host it chooses
// among kernels.
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
    default:
      return;  // fused kernels are given no others
  }
}

// The same for the activations that elementwise kernels alone compute.
template <class Visit>
__device__ __forceinline__ void visit_unfused_activation(Activation act, const Visit& visit) {
  switch (act) {
    case Activation::relu2:
      return visit(std::integral_constant<Activation, Activation::relu2>{});
    case Activation::tanh:
      return visit(std::integral_constant<Activation, Activation::tanh>{});
    case Activation::gelu:
      return visit(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return visit(std::integral_constant<Activation, Activation::gelu_tanh>{});
    default:
      return;  // those of visit_activation()
  }
}

// Calls work(act): where KNOWN with the activation as visit_activation() gives it, else with Activation::none. A kernel
// that does all its work in one such call branches once; a branch at every vector is slower where there is little work.
template <bool KNOWN, class Work>
__device__ __forceinline__ void with_activation(Activation act, const Work& work) {
  if constexpr (KNOWN) {
    visit_activation(act, work);
  } else {
    work(std::integral_constant<Activation, Activation::none>{});
  }
}

}  // namespace heddle::kernels::cuda
