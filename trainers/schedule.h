// The learning rate of each step.                                                  docs/config.md#schedule
#pragma once

#include <cstdint>

#include "trainers/train_config.h"

namespace heddle {

// Step 1 is the first. Warm-up: lr * step / warmup_steps; then from lr to min_lr, which the last step has:
//   cosine  min_lr + (lr - min_lr) (1 + cos(pi p)) / 2     linear  lr + (min_lr - lr) p     constant  lr
// with p = (step - warmup_steps) / (steps - warmup_steps).
double learning_rate(const TrainConfig& config, int64_t step);

}  // namespace heddle
