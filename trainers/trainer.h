// The training loop: batches, steps, evaluation, checkpoints, metrics, and a sample at the end.    docs/training.md
#pragma once

#include <cstdio>
#include <functional>
#include <optional>
#include <string>

#include "trainers/run/run_folder.h"
#include "trainers/train_step.h"

namespace heddle {

struct TrainOptions {
  std::filesystem::path folder;    // the run folder
  std::string resume = "auto";     // see RunFolder::choose
  std::string program = "heddle";  // name and version, kept in checkpoints
  std::FILE* log = stderr;         // progress
  // Asked after every step. When it says yes, the run writes a checkpoint and ends.
  std::function<bool()> stop_requested = [] { return false; };
};

struct TrainResult {
  bool finished = false;  // false: stopped on request
  int64_t step = 0;
  std::optional<Evaluation> evaluation;  // of the last step, when this call made it
  std::string sample;                    // text, when the config asks for one and the run is finished
};

// Trains to the last step of the config, or goes on to it. A run that was stopped or killed and goes on ends with the
// same bytes in model.safetensors and metrics.csv as one that was not.
// Throws ConfigError, UsageError, NonFinite, or Error for what fails on the way.
TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options);

}  // namespace heddle
