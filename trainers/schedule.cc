#include "trainers/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace heddle {

namespace {

// The steps at the end in which the rate of wsd falls; there is a step after the warm-up.
int64_t decay_steps(const TrainConfig& config) {
  const double steps = static_cast<double>(config.trainer.steps);
  const auto share = static_cast<int64_t>(std::llround(config.schedule.decay_fraction * steps));
  return std::clamp<int64_t>(config.schedule.decay_steps.value_or(share), 1,
                             config.trainer.steps - config.schedule.warmup_steps);
}

}  // namespace

double learning_rate(const TrainConfig& config, int64_t step) {
  const double lr = config.optimizer.lr;
  const double min_lr = config.schedule.min_lr;
  const int64_t warmup = config.schedule.warmup_steps;
  if (step <= warmup) return lr * static_cast<double>(step) / static_cast<double>(warmup);
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(config.trainer.steps - warmup);
  switch (config.schedule.type) {
    case ScheduleType::cosine:
      return min_lr + (lr - min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    case ScheduleType::linear:
      return lr + (min_lr - lr) * progress;
    case ScheduleType::wsd: {
      const int64_t decay = decay_steps(config), begin = config.trainer.steps - decay;
      if (step <= begin) return lr;
      const double part = static_cast<double>(step - begin) / static_cast<double>(decay);
      return lr + (min_lr - lr) * (config.schedule.decay_shape == DecayShape::linear ? part : std::sqrt(part));
    }
    case ScheduleType::constant:
      break;
  }
  return lr;
}

}  // namespace heddle
