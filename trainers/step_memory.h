// The memory of a training step, counted without data.                                            docs/memory.md
#pragma once

#include <cstddef>
#include <optional>

#include "trainers/train_config.h"
#include "trainers/train_step.h"

namespace heddle {

// Takes two optimizer steps on batches of zeros, with a learning rate of 0. The second finds what the first leaves, as
// all later ones do. The bytes do not depend on the tokens.
void take_two_steps(TrainStep& train_step, const TrainConfig& config);

// The most that two steps of the config had at one time.
struct StepPeak {
  size_t allocated = 0;
  size_t reserved = 0;
};

// Of the first of `processes` processes, counted on device meta with `limit_bytes` of memory (0: without a limit); none
// when that is not enough. Throws what building the model throws, and without a limit OutOfMemory for batches that the
// host cannot hold.
std::optional<StepPeak> step_peak(const TrainConfig& config, size_t limit_bytes = 0, int processes = 1);

}  // namespace heddle
