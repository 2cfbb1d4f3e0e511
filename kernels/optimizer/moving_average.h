// Moving averages of both devices.
#pragma once

#include "kernels/common/types.h"

namespace heddle::kernels {

// average = decay average + rest value, where rest is 1 - decay, rounded once: 1 minus a decay near 1 that was rounded
// before has lost digits, which correction factors 1 - decay^step would not share.
template <class A>
struct MovingAverage {
  A decay, rest;
  static MovingAverage of(double decay) { return {static_cast<A>(decay), static_cast<A>(1.0 - decay)}; }
  HEDDLE_HOST_DEVICE_INLINE A next(A average, A value) const { return decay * average + rest * value; }
};

}  // namespace heddle::kernels
