// The best evaluation of a run so far.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

namespace heddle {

struct EvaluationHistory {
  struct Best {
    int64_t step = 0;
    double loss = 0.0;                                           // nats per target
    double accuracy = std::numeric_limits<double>::quiet_NaN();  // NaN where it was not measured, as in EvaluationEvent
    double bits_per_byte = std::numeric_limits<double>::quiet_NaN();
  };
  std::optional<Best> best;
  int64_t without_gain = 0;  // evaluations since the best one, or since the start

  // Notes an evaluation and returns whether it is the best so far. A loss that is not finite never is.
  bool add(const Best& evaluation) {
    const bool is_best = std::isfinite(evaluation.loss) && (!best || evaluation.loss < best->loss);
    if (is_best) best = evaluation;
    without_gain = is_best ? 0 : without_gain + 1;
    return is_best;
  }
};

}  // namespace heddle
