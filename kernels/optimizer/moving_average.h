// Exponential moving averages, for both devices.
#pragma once

#include <limits>

#include "kernels/common/types.h"

namespace heddle::kernels {

// average = decay * average + rest * value, where rest is 1 - decay, taken in double. In float32 1 - decay loses digits
// for decays near 1, and would not match the correction factors 1 - decay^step.
template <class A>
struct MovingAverage {
  A decay, rest;
  static MovingAverage of(double decay) { return {static_cast<A>(decay), static_cast<A>(1.0 - decay)}; }
  HEDDLE_HOST_DEVICE_INLINE A next(A average, A value) const { return decay * average + rest * value; }
};

template <class A>
inline constexpr A kLargestMoment = std::numeric_limits<A>::max();

// A second moment, but the largest finite number where the square of a gradient was infinite: an infinite one would
// stay so, and its element would not be trained any more.
template <class A>
HEDDLE_HOST_DEVICE_INLINE A bounded_moment(A moment) {
  return moment > kLargestMoment<A> ? kLargestMoment<A> : moment;
}

}  // namespace heddle::kernels
