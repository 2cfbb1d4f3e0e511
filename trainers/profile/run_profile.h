// trainer.profile of a run: measures its steps, then writes the trace and makes the tables.
#pragma once

#include <cstdint>
#include <optional>

#include "trainers/logging/logger.h"
#include "trainers/profile/profile_report.h"
#include "trainers/train_config.h"
#include "trainers/train_step.h"

namespace heddle {

// Throws ConfigError, naming trainer.profile.trace, when the file for the trace cannot be made. Nothing is left of the
// trial.
void check_trace(const TrainConfig& config);

class RunProfile {
 public:
  // The step must outlive it.
  RunProfile(Context& context, TrainStep& train_step, const ProfileConfig& config);

  // Before each step of the run, with the seconds spent in the steps before it since the start.
  void before(int64_t step, double seconds);
  // After it. The event after the last step that is measured.
  std::optional<ProfileEvent> after(int64_t step);

 private:
  TrainStep& train_step_;
  ProfileConfig config_;
  StepProfiler profiler_;
  Profile profile_;
  int64_t plain_steps_ = 0;  // that were taken before
  double plain_begin_ = 0.0;
};

}  // namespace heddle
