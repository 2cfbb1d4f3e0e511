// The activations of kernels/common/activation.h and their derivatives on the CPU, without branches and calls, so that
// loops that use them are vectorised (see math.h). In float, values are right to 3 ulp where sigmoid(x) is a normal
// number, and those of gelu and gelu_tanh to 8 ulp, subnormal results included; for x < -87.3, sigmoid and silu are 0.
// Results at 0 and at infinity are exact, NaN stays NaN.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/runtime/error.h"
#include "kernels/common/activation.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/gelu.h"

namespace heddle::kernels::cpu {

// 1 / (1 + exp(-x))
template <class A>
[[gnu::always_inline]] inline A sigmoid(A x) {
  const A small = exponential_of_minus_magnitude(x);
  return (x < A(0) ? small : A(1)) * inverse_in_1_2(A(1) + small);
}

// tanh(x). Near 0, where 1 - 2 exp(-2 |x|) / (1 + exp(-2 |x|)) loses digits, it is the odd polynomial of Cephes' tanhf.
// Source: S. L. Moshier, Cephes Mathematical Library, single/tanhf.c.
[[gnu::always_inline]] inline float hyperbolic_tangent(float x) {
  const float small = exponential_of_minus_magnitude(x + x);
  const float magnitude = 1.0f - 2.0f * small * inverse_in_1_2(1.0f + small);
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near_zero = p * square * x + x;
  const float far = x < 0.0f ? -magnitude : magnitude;
  return square < 0.390625f ? near_zero : far;  // |x| < 0.625
}
inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// What gelu.h computes with.
template <class A>
struct Arithmetic {
  using Wide = double;
  [[gnu::always_inline]] static A exponential(A x) { return cpu::exponential(x); }
  [[gnu::always_inline]] static A inverse(A x) { return A(1) / x; }
  [[gnu::always_inline]] static A inverse_in_1_2(A x) { return cpu::inverse_in_1_2(x); }
};

template <Activation act, class A>
[[gnu::always_inline]] inline A apply_activation(A x) {
  if constexpr (act == Activation::none) return x;
  if constexpr (act == Activation::relu) return x <= A(0) ? A(0) : x;
  if constexpr (act == Activation::sigmoid) return sigmoid(x);
  if constexpr (act == Activation::silu) {
    const A bounded = x < A(-1000) ? A(-1000) : x;  // -infinity times 0 would be NaN
    return bounded * sigmoid(x);
  }
  if constexpr (act == Activation::elu1) {
    const A lower = exponential(x < A(0) ? x : A(0));
    return x < A(0) ? lower : x + A(1);
  }
  if constexpr (act == Activation::relu2) return x <= A(0) ? A(0) : x * x;
  if constexpr (act == Activation::tanh) return hyperbolic_tangent(x);
  if constexpr (act == Activation::gelu) return gelu<Arithmetic<A>>(x).value;
  if constexpr (act == Activation::gelu_tanh) return gelu_tanh<Arithmetic<A>>(x).value;
}

// The derivative at x, the argument of the activation. relu'(0) = 0; elu1'(0) = 1 from both sides.
template <Activation act, class A>
[[gnu::always_inline]] inline A activation_derivative(A x) {
  if constexpr (act == Activation::none) return A(1);
  if constexpr (act == Activation::relu) return x > A(0) ? A(1) : apply_activation<act>(x);
  if constexpr (act == Activation::sigmoid) {
    const A small = exponential_of_minus_magnitude(x);
    const A scale = inverse_in_1_2(A(1) + small);
    return small * scale * scale;
  }
  if constexpr (act == Activation::silu) {
    // s (1 + x (1 - s)), both s and 1 - s without a difference.
    const A small = exponential_of_minus_magnitude(x);
    const A scale = inverse_in_1_2(A(1) + small);
    const A other = small * scale;
    A bounded = x < A(-1000) ? A(-1000) : x;
    bounded = bounded > A(1000) ? A(1000) : bounded;
    return (x < A(0) ? other : scale) * (A(1) + bounded * (x < A(0) ? scale : other));
  }
  if constexpr (act == Activation::elu1) return exponential(x > A(0) ? A(0) : x);
  if constexpr (act == Activation::relu2) return x <= A(0) ? A(0) : x + x;
  if constexpr (act == Activation::tanh) {
    // 4 exp(-2 |x|) / (1 + exp(-2 |x|))^2, which is 1 - tanh(x)^2 without a difference.
    const A small = exponential_of_minus_magnitude(x + x);
    const A scale = inverse_in_1_2(A(1) + small);
    return A(4) * small * scale * scale;
  }
  if constexpr (act == Activation::gelu) return gelu<Arithmetic<A>>(x).derivative;
  if constexpr (act == Activation::gelu_tanh) return gelu_tanh<Arithmetic<A>>(x).derivative;
}

// Both at once, for backward passes that need both: one exponential serves both.
template <Activation act, class A>
inline Activated<A> activate_with_derivative(A x) {
  if constexpr (act == Activation::gelu) {
    return gelu<Arithmetic<A>>(x);
  } else if constexpr (act == Activation::gelu_tanh) {
    return gelu_tanh<Arithmetic<A>>(x);
  } else if constexpr (act != Activation::sigmoid && act != Activation::silu) {
    return {apply_activation<act>(x), activation_derivative<act>(x)};
  } else {
    const A small = exponential_of_minus_magnitude(x);
    const A scale = inverse_in_1_2(A(1) + small);
    const A other = small * scale;
    const A value = x < A(0) ? other : scale, complement = x < A(0) ? scale : other;
    if constexpr (act == Activation::sigmoid) return {value, other * scale};
    A bounded = x < A(-1000) ? A(-1000) : x;
    const A product = bounded * value;
    bounded = bounded > A(1000) ? A(1000) : bounded;
    return {product, value * (A(1) + bounded * complement)};
  }
}

// Calls visit(std::integral_constant<Activation, act>{}), which turns the option into a template argument, for the
// activations of kActivations.
template <class Visit>
void visit_activation(Activation act, const Visit& visit) {
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
      fail("activation {} is none that fused kernels compute", static_cast<int>(act));
  }
}

// The same for those of kElementwiseActivations.
template <class Visit>
void visit_elementwise_activation(Activation act, const Visit& visit) {
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
      return visit_activation(act, visit);
  }
}

}  // namespace heddle::kernels::cpu
