// The learning rate of each step.                                                  docs/config.md#schedule
#pragma once

#include <cstdint>

#include "trainers/train_config.h"

namespace heddle {

// Step 1 is the first. Warm-up: lr * step / warmup_steps; then from lr to min_lr, which the last step has:
//   cosine  min_lr + (lr - min_lr) (1 + cos(pi p)) / 2     linear  lr + (min_lr - lr) p     constant  lr
// with p = (step - warmup_steps) / (steps - warmup_steps);
//   wsd     lr, and in the last D steps lr + (min_lr - lr) q or, with decay_shape sqrt, lr + (min_lr - lr) q^0.5
// with q = (step - (steps - D)) / D and D = decay_steps or else decay_fraction * steps, rounded, at least 1 and at most
// steps - warmup_steps. Sources: Hu et al., "MiniCPM", arXiv:2404.06395; Haegele et al., "Scaling laws and
// compute-optimal training beyond fixed training durations", arXiv:2405.18392, for sqrt.
double learning_rate(const TrainConfig& config, int64_t step);

}  // namespace heddle
