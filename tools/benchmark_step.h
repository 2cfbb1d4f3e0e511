// The time of training steps on tokens that are made up: the time does not depend on them.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "trainers/train_config.h"
#include "trainers/train_step.h"

namespace heddle {

// By the clock of the host.
template <class Call>
double seconds_of(const Call& call) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  call();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// All ids of the vocabulary in turn.
std::vector<int32_t> tokens_in_turn(int64_t vocab_size, int64_t count);

// The median time of an optimizer step with the sizes of the config, on tokens in turn and with a learning rate of 0.
// After two steps that are not timed, steps are timed until there are `least_steps` of them that took `least_seconds`
// together.
double seconds_per_step(TrainStep& train_step, const TrainConfig& config, int least_steps, double least_seconds = 0.0);

}  // namespace heddle
