// metrics.csv of a run: one row a step. It holds no times, so two runs of one config write the same file.
#pragma once

#include <filesystem>
#include <string>

#include "trainers/logging/logging_config.h"
#include "trainers/logging/step_log.h"

namespace heddle {

// The columns are step, tokens, loss, gradient_norm, learning_rate, validation_loss and validation_accuracy, and with
// trainer.skip_nonfinite also skipped_steps, how many were left out up to there; a field is empty where nothing was
// measured. With LoggingConfig::every above 1 there are rows of the steps that the config holds
// and of those with an evaluation. StepLog says what becomes of the rows of a run that continues.
class CsvLogger : public Logger {
 public:
  CsvLogger(std::filesystem::path path, Note note, const LoggingConfig& config = {});

  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void flush() override;

 private:
  void end_row();

  LoggingConfig config_;
  StepLog log_;
  std::string row_;  // of the last step, without the columns of an evaluation
  std::string evaluation_;
  bool with_skipped_ = false;  // the file has the column skipped_steps
  std::string skipped_;        // of the last step, in that column
  bool is_held_ = false;       // whether there is to be a row of the last step
};

}  // namespace heddle
