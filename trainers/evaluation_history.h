// The best evaluation of a run so far.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

namespace heddle {

struct EvaluationHistory {
  struct Best {
    int64_t step = 0;
    double loss = 0.0;  // nats per target
  };
  std::optional<Best> best;
  int64_t without_gain = 0;  // evaluations since the best one, or since the start

  // Notes an evaluation and returns whether it is the best so far. A loss that is not finite never is.
  bool add(int64_t step, double loss) {
    const bool is_best = std::isfinite(loss) && (!best || loss < best->loss);
    if (is_best) best = Best{step, loss};
    without_gain = is_best ? 0 : without_gain + 1;
    return is_best;
  }
};

}  // namespace heddle
