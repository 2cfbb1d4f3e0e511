// Proves on a config that a training which stops and goes on is, bit for bit, one that did not stop. docs/training.md
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "trainers/train_config.h"

namespace heddle {

struct VerifyResumeOptions {
  int64_t steps = 20;  // that are trained, at most trainer.steps; a step at least before the stop and one after it
  std::function<std::unique_ptr<Context>()> open;  // a context for each of the trainings
  std::filesystem::path init_from = {};            // as in TrainOptions
  std::FILE* log = stderr;                         // says what is trained; nullptr: nothing
  // Asked before every step. When it says yes, the check ends without a result.
  std::function<bool()> stop_requested = [] { return false; };
};

struct VerifyResumeResult {
  bool finished = false;  // false: ended on request
  int64_t steps = 0;      // with and without a stop
  int64_t stop = 0;     // the step after which the second training stopped and a third one went on from its checkpoint
  int64_t tensors = 0;  // of the weights and of the optimizer, compared after every step
  std::optional<std::string> difference;  // where the first one is; none: all bits are equal
};

// Trains twice with the config, but with the checkpoints that this needs and without a sample or a time limit: once
// without a stop, once with one, after which all of the trainer is made anew. After every step it compares weights,
// optimizer, state and the row of the metrics. Writes to a temporary folder, which it removes. Throws UsageError when
// there are fewer than two steps, and what train() throws.
VerifyResumeResult verify_resume(const TrainConfig& config, const VerifyResumeOptions& options,
                                 const Registry& registry = built_in_registry());

}  // namespace heddle
