// metrics.csv of a run: one row a step. It holds no times, so two runs of one config write the same file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/io/atomic_file.h"
#include "trainers/logging/logger.h"
#include "trainers/logging/note.h"

namespace heddle {

// The columns are step, tokens, loss, gradient_norm, learning_rate, validation_loss and validation_accuracy, and with
// trainer.skip_nonfinite also skipped_steps, how many were left out up to there; a field is empty where nothing was
// measured. flush() appends the rows since the last one, so the time of a save does not grow
// with the length of the run.
//
// A run that continues from a checkpoint RUN/checkpoints/step_N goes on with the rows of RUN/metrics.csv up to step N;
// those after it are made anew. What cannot be read as rows is kept beside the file as metrics.csv.damaged and noted,
// and a file that a run from the beginning would cut short as metrics.csv.before.
class CsvLogger : public Logger {
 public:
  CsvLogger(std::filesystem::path path, Note note);

  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void flush() override;

 private:
  void begin(const StartEvent& event);
  void go_on(const std::filesystem::path& from, int64_t last_step);
  void keep_aside(const std::string& reason, const std::string& suffix);
  void end_row();

  std::filesystem::path path_;
  Note note_;
  std::unique_ptr<AppendFile> file_;  // opened by the first flush
  std::string rows_;                  // complete, not yet in the file
  std::string row_;                   // of the last step, without the columns of an evaluation
  std::string evaluation_;
  bool with_skipped_ = false;  // the file has the column skipped_steps
  std::string skipped_;        // of the last step, in that column
};

}  // namespace heddle
