// The event file of a run for TensorBoard. docs/watching.md#tensorboard
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "core/io/event_file.h"
#include "trainers/logging/logging_config.h"
#include "trainers/logging/write_clock.h"

namespace heddle {

// Numbers: train/loss, train/gradient_norm, train/learning_rate and train/tokens_per_second of the steps that the
// config holds; validation/loss and validation/accuracy; memory/CATEGORY, the peaks in MiB, at the first step and with
// each evaluation. Texts: sample. Every start writes a file of its own, and says that steps after its first one begin
// anew.
class TensorBoardLogger : public Logger {
 public:
  TensorBoardLogger(std::filesystem::path folder, const LoggingConfig& config = {});

  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void sample(const SampleEvent& event) override;
  void flush() override;

 private:
  void memory();

  std::filesystem::path folder_;
  LoggingConfig config_;
  std::optional<EventFile> file_;  // from the start on
  TokenRate rate_;
  StepEvent last_;      // the last step
  int64_t tokens_ = 0;  // since the last step that was written
};

}  // namespace heddle
