// The factor of the loss in backward, and how it adapts.                                docs/training.md#float16
#pragma once

#include <cstdint>

namespace heddle {

// In float16 small gradients are lost and large ones overflow, so the loss is multiplied by a scale before backward and
// the gradient divided by it afterwards. A dynamic scale is halved when a gradient overflows, and that step is left
// out; it is doubled after kGrowthSteps steps in a row that did not. Source: Micikevicius et al., "Mixed precision
// training", arXiv:1710.03740.
struct LossScale {
  static constexpr int64_t kGrowthSteps = 2000;

  double value = 1.0;
  int64_t good_steps = 0;  // in a row, since the last change
  int64_t left_out = 0;    // steps of the run that were left out

  // A step was taken with a finite gradient.
  void succeed() {
    if (++good_steps < kGrowthSteps) return;
    value *= 2.0;
    good_steps = 0;
  }
  // The gradient was not finite. Returns false when the scale is so small that it cannot be the reason.
  bool fail() {
    if (value <= 1.0) return false;
    value *= 0.5;
    good_steps = 0;
    ++left_out;
    return true;
  }
};

}  // namespace heddle
