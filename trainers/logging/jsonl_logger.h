// log.jsonl of a run: one JSON object a line for each event. docs/watching.md#jsonl
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trainers/logging/logging_config.h"
#include "trainers/logging/step_log.h"
#include "trainers/logging/write_clock.h"

namespace heddle {

// Each object has "event", the name of the function of Logger that was told, "step" and "time" (seconds since 1970);
// numbers that are not finite are null. Steps are those that the config holds. StepLog says what becomes of the lines
// of a run that continues.
class JsonlLogger : public Logger {
 public:
  JsonlLogger(std::filesystem::path path, Note note, const LoggingConfig& config = {});

  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void checkpoint(const CheckpointEvent& event) override;
  void profile(const ProfileEvent& event) override;
  void end(const EndEvent& event) override;
  void sample(const SampleEvent& event) override;
  void note(const std::string& line) override;
  void flush() override { log_.flush(); }

 private:
  LoggingConfig config_;
  StepLog log_;
  TokenRate rate_;
  int64_t step_ = 0;                // of the last event
  int64_t tokens_ = 0;              // since the last step that was written
  bool has_started_ = false;        // before that no step is known
  std::vector<std::string> notes_;  // of before the start
};

}  // namespace heddle
