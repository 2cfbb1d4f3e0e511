// metrics.csv of a run: one row a step. It holds no times, so two runs of one config write the same file.
#pragma once

#include <filesystem>
#include <string>

#include "trainers/logging/logger.h"
#include "trainers/logging/note.h"

namespace heddle {

// The columns are step, tokens, loss, gradient_norm, learning_rate, validation_loss and validation_accuracy; a field is
// empty where nothing was measured. The rows are kept in memory and flush() replaces the whole file, so it is never
// half-written.
class CsvLogger : public Logger {
 public:
  CsvLogger(std::filesystem::path path, Note note);

  // A run that continues from a checkpoint RUN/checkpoints/step_N starts with the rows of RUN/metrics.csv up to step N.
  // Notes when that file is missing; throws Error when a row is missing in it.
  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void flush() override;

  // Starts with the rows of `from` up to `last_step`. Throws Error when one of them is missing there.
  void load(const std::filesystem::path& from, int64_t last_step);

 private:
  void end_row();

  std::filesystem::path path_;
  Note note_;
  std::string text_;  // the header and all rows that are complete
  std::string row_;   // of the last step, without the columns of an evaluation
  std::string evaluation_;
};

}  // namespace heddle
