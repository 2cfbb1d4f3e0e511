#include "trainers/schedule.h"

#include <cmath>
#include <cstdint>
#include <numbers>

namespace heddle {

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
    case ScheduleType::constant:
      break;
  }
  return lr;
}

}  // namespace heddle
