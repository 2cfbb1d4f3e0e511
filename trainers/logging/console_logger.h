// Tells people how far a run is. The progress is one line that is rewritten on a terminal, and a plain line every ten
// seconds elsewhere; what happens between the steps gets a line of its own. A run that is finished ends with a summary
// for a lab book.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "trainers/logging/logger.h"

namespace heddle {

class ConsoleLogger : public Logger {
 public:
  // Writes to `out`, which must outlive it.
  explicit ConsoleLogger(std::FILE* out);
  ~ConsoleLogger() override;
  ConsoleLogger(const ConsoleLogger&) = delete;
  ConsoleLogger& operator=(const ConsoleLogger&) = delete;

  void start(const StartEvent& event) override;
  void step(const StepEvent& event) override;
  void evaluation(const EvaluationEvent& event) override;
  void profile(const ProfileEvent& event) override;
  void end(const EndEvent& event) override;
  void sample(const SampleEvent& event) override;
  void note(const std::string& line) override;

 private:
  using Clock = std::chrono::steady_clock;

  // Writes a line that stays.
  void say(const std::string& line);

  std::FILE* out_;
  bool is_terminal_;
  StartEvent start_;
  int64_t tokens_ = 0;      // since the start
  bool has_shown_ = false;  // whether the progress of a step was shown, and when
  Clock::time_point last_shown_;
  bool is_line_open_ = false;  // the last line on the terminal is to be rewritten
};

// "1:05", "2:03:59".
std::string format_duration(double seconds);

// "848", "1.23 M": a number of parameters, in full where two digits of a million would not tell much.
std::string format_parameters(int64_t count);

}  // namespace heddle
