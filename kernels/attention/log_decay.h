// Log decays of linear attention on both devices.
#pragma once

#include "kernels/common/types.h"

namespace heddle::kernels {

// A log decay, no lower than what no double holds the power of, so that what is added to it in a sum keeps its digits:
// masks may be the least number of a dtype. NaN stays NaN.
HEDDLE_HOST_DEVICE_INLINE double bounded_log_decay(double log_decay) {
  constexpr double kLeast = -1024.0;
  return log_decay < kLeast ? kLeast : log_decay;
}

}  // namespace heddle::kernels
