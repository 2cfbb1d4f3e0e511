// Angles of position encodings: the sine and cosine of position * theta, accurate at every position.
// For float32 and narrower types the angle is a 64-bit fixed-point number whose full range, 2^64, is one revolution.
// theta / 2 pi as such a fraction times the position wraps exactly, and the upper 32 bits are the angle to 2^-32 of a
// revolution. The error of cos and sin is below 1e-6 for every position below 2^20 and every theta. The code needs no
// local memory. For float64 the product is the sum of its rounded value and what that leaves.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/types.h"
#include "kernels/position/revolutions.h"

namespace heddle::kernels::cuda {

template <class A>
struct SinCos {
  A sin, cos;
};

// The angle of one feature per position, for tensors of T. of() converts theta in radians, unless is_far(theta), where
// of_far() does; at() gives the sine and cosine of theta times a position.
template <class T>
struct Angle {
  uint64_t revolutions = 0;  // theta / 2 pi modulo 1, a multiple of 2^-64
  float not_finite = 0;      // 0, or NaN where theta is NaN or infinite

  __device__ __forceinline__ static Angle of(float theta) {
    // 1 / 2 pi as the sum of two doubles: the relative error of the product is about 2^-100 before whole revolutions
    // are dropped.
    constexpr double kHigh = 0x1.45f306dc9c883p-3;
    constexpr double kLow = -0x1.6b01ec5417056p-57;
    const double product = theta * kHigh;
    const double rest = fma(static_cast<double>(theta), kHigh, -product) + theta * kLow;
    const double fraction = (product - rint(product)) + rest;
    return {static_cast<uint64_t>(static_cast<int64_t>(fraction * 0x1p62)) << 2, theta - theta};
  }
  __device__ __forceinline__ static bool is_far(float theta) { return fabsf(theta) >= kFarTheta; }
  __device__ __forceinline__ static Angle of_far(float theta) {
    return {far_revolutions(__float_as_uint(theta)), theta - theta};
  }

  __device__ __forceinline__ SinCos<float> at(int64_t position) const {
    const auto upper = static_cast<int32_t>((revolutions * static_cast<uint64_t>(position)) >> 32);
    SinCos<float> result;
    if constexpr (sizeof(T) == 2) {
      // The absolute error of the hardware's sine and cosine on [-pi, pi] is 2^-20.5, far below the rounding of y.
      __sincosf(static_cast<float>(upper) * 0x1.921fb6p-30f + not_finite, &result.sin, &result.cos);
    } else {
      sincospif(static_cast<float>(upper) * 0x1p-31f + not_finite, &result.sin, &result.cos);
    }
    return result;
  }
};

template <>
struct Angle<double> {
  double theta = 0.0;

  __device__ __forceinline__ static Angle of(double theta) { return {theta}; }
  __device__ __forceinline__ static bool is_far(double) { return false; }
  __device__ __forceinline__ static Angle of_far(double theta) { return {theta}; }
  __device__ __forceinline__ SinCos<double> at(int64_t position) const {
    const auto factor = static_cast<double>(position);
    const double angle = factor * theta, left = fma(factor, theta, -angle);
    SinCos<double> first, rest;
    sincos(angle, &first.sin, &first.cos);
    sincos(left, &rest.sin, &rest.cos);
    return {first.sin * rest.cos + first.cos * rest.sin, first.cos * rest.cos - first.sin * rest.sin};
  }
};

// angles[i] = Angle<T>::of(thetas[i]), or of_far() where that is right. Far thetas are looked for first, so that the
// usual case does not keep thetas in registers.
template <class T, int WIDTH, class Thetas>
__device__ __forceinline__ void compute_angles(const Thetas& thetas, Angle<T> (&angles)[WIDTH]) {
  bool has_far = false;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) has_far |= Angle<T>::is_far(thetas[i]);
  if (has_far) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      angles[i] = Angle<T>::is_far(thetas[i]) ? Angle<T>::of_far(thetas[i]) : Angle<T>::of(thetas[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) angles[i] = Angle<T>::of(thetas[i]);
  }
}

}  // namespace heddle::kernels::cuda
