// Steps that were left out because their numbers were not finite (trainer.skip_nonfinite).
#pragma once

#include <cstdint>

namespace heddle {

struct SkippedSteps {
  int64_t total = 0;     // of the run
  int64_t in_a_row = 0;  // up to now

  bool operator==(const SkippedSteps&) const = default;
};

}  // namespace heddle
