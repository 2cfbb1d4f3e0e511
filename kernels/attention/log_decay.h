// Log decays of linear attention on both devices.
#pragma once

#include "kernels/common/types.h"

namespace heddle::kernels {

// max(log_decay, -1024): exp(-1024) is 0 in double, so the decay stays the same. In a sum the other terms keep their
// digits then, also where a mask is the lowest finite number of a dtype instead of -infinity. NaN stays NaN.
HEDDLE_HOST_DEVICE_INLINE double bounded_log_decay(double log_decay) {
  constexpr double kLeast = -1024.0;
  return log_decay < kLeast ? kLeast : log_decay;
}

}  // namespace heddle::kernels
