// The memory of a training step, counted without data.                                            docs/memory.md
#pragma once

#include <cstddef>
#include <limits>
#include <optional>

#include "trainers/train_config.h"
#include "trainers/train_step.h"

namespace heddle {

// Takes two optimizer steps on batches of zeros, on meta on their shapes alone, with a learning rate of 0. The second
// finds what the first leaves, as all later ones do. The bytes do not depend on the tokens.
void take_two_steps(TrainStep& train_step, const TrainConfig& config);

// The most that two steps of the config had at one time.
struct StepPeak {
  size_t allocated = 0;
  size_t reserved = 0;
};

// Bytes that can be counted: what the addresses of a device can tell apart.
inline constexpr size_t kMostCountedBytes = std::numeric_limits<std::ptrdiff_t>::max();

// Of the first of `processes` processes, counted on device meta with `limit_bytes` of memory (0: kMostCountedBytes);
// none when that is not enough. Throws what building the model throws.
std::optional<StepPeak> step_peak(const TrainConfig& config, size_t limit_bytes = 0, int processes = 1);

}  // namespace heddle
