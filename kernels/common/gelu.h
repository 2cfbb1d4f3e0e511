// The activations gelu and gelu_tanh with their derivatives, for both devices.
//
// Both are x P(x) with P(x) + P(-x) = 1, hence f(x) = x + f(-x) and f'(x) = 1 - f'(-x): value and derivative follow
// from those at -|x|, where they are small and keep their digits. At infinity they are the limits, NaN gives NaN.
//
// A device says what it computes with by a struct `Arithmetic` for the type of arithmetic A:
//   using Wide = ...                     the type of exponents, at least A
//   static A exponential(A x)            exp(x) for finite x <= 0
//   static A inverse(A x)                1 / x for x >= 1
//   static A inverse_in_1_2(A x)         the same for x from 1 to 2
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels/common/activation.h"
#include "kernels/common/types.h"

namespace heddle::kernels {

// exp(x) for finite x <= 0. An error of the exponent is a relative error of the result, so the exponent is taken as its
// rounded value and what the rounding left.
template <class Arithmetic, class A>
HEDDLE_HOST_DEVICE_INLINE A exponential_of_wide(typename Arithmetic::Wide x) {
  using Wide = typename Arithmetic::Wide;
  const A high = static_cast<A>(x);
  const A power = Arithmetic::exponential(high);
  if constexpr (std::is_same_v<A, Wide>) return power;
  const A rest = static_cast<A>(x - static_cast<Wide>(high));
  return power + power * rest;
}

// f(x) and f'(x) from those at -|x|.
template <class A>
HEDDLE_HOST_DEVICE_INLINE Activated<A> from_below_zero(A x, Activated<A> below) {
  return {x < A(0) ? below.value : x + below.value, x < A(0) ? below.derivative : A(1) - below.derivative};
}

// |x|, or `largest` where it is larger; NaN stays NaN.
template <class A>
HEDDLE_HOST_DEVICE_INLINE A magnitude_up_to(A largest, A x) {
  const A magnitude = x < A(0) ? -x : x;
  return magnitude > largest ? largest : magnitude;
}

// gelu at -t, for t in [0, 15]: -t P(-t) and P(-t) - t p(t) with the standard normal distribution P and its density p.
// P(-t) is exp(-t^2 / 2) times a smooth function, here a polynomial in 1 / (1 + 0.3 t) that interpolates
// exp(t^2 / 2) erfc(t / sqrt(2)) / 2 in the nodes of Chebyshev with a relative error of 1.3e-8. So the far tail keeps
// its digits.
inline constexpr double kInverseRoot2Pi = 0.398942280401432678;  // 1 / sqrt(2 pi)
template <class Arithmetic>
HEDDLE_HOST_DEVICE_INLINE Activated<float> gelu_at_minus(float t) {
  using Wide = typename Arithmetic::Wide;
  const float power = exponential_of_wide<Arithmetic, float>(Wide(-0.5) * static_cast<Wide>(t) * static_cast<Wide>(t));
  const float w = Arithmetic::inverse(1.0f + 0.3f * t);
  float p = -1.835170061e-02f;
  p = p * w + 9.927793760e-02f;
  p = p * w - 1.948621219e-01f;
  p = p * w + 1.431704124e-01f;
  p = p * w - 3.439947422e-02f;
  p = p * w + 6.853611710e-02f;
  p = p * w + 8.973086907e-02f;
  p = p * w + 1.071639793e-01f;
  p = p * w + 1.200960076e-01f;
  p = p * w + 1.196358449e-01f;
  p = p * w + 2.128152191e-06f;
  return {-t * p * power, (p - static_cast<float>(kInverseRoot2Pi) * t) * power};
}
template <class Arithmetic>
HEDDLE_HOST_DEVICE_INLINE Activated<double> gelu_at_minus(double t) {
  const double probability = 0.5 * std::erfc(t * 0.707106781186547524);
  return {-t * probability, probability - t * kInverseRoot2Pi * std::exp(-0.5 * t * t)};
}

// Source: Hendrycks, Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415.
template <class Arithmetic, class A>
HEDDLE_HOST_DEVICE_INLINE Activated<A> gelu(A x) {
  constexpr A kLargest = std::is_same_v<A, float> ? A(15) : A(39);  // there and beyond, gelu(-t) is 0
  return from_below_zero(x, gelu_at_minus<Arithmetic>(magnitude_up_to(kLargest, x)));
}

// x s(v) with the sigmoid s and v = 2 sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh(v / 2)) / 2.
template <class Arithmetic, class A>
HEDDLE_HOST_DEVICE_INLINE Activated<A> gelu_tanh(A x) {
  using Wide = typename Arithmetic::Wide;
  constexpr double kFirst = 1.59576912160573072, kThird = kFirst * 0.044715;
  constexpr A kLargest = std::is_same_v<A, float> ? A(11) : A(22);  // there and beyond, s(-v(t)) is 0
  const A t = magnitude_up_to(kLargest, x);
  const Wide wide = static_cast<Wide>(t);
  // exp(-v(t)) as a square: where it is subnormal its product with a large factor need not be.
  const A root = exponential_of_wide<Arithmetic, A>(
      Wide(-0.5) * wide * (static_cast<Wide>(kFirst) + static_cast<Wide>(kThird) * wide * wide));
  const A scale = Arithmetic::inverse_in_1_2(A(1) + root * root);
  const A growth = t * (static_cast<A>(kFirst) + static_cast<A>(3.0 * kThird) * t * t);  // t v'(t)
  return from_below_zero(x, {-t * scale * root * root, scale * (A(1) - scale * growth) * root * root});
}

}  // namespace heddle::kernels
