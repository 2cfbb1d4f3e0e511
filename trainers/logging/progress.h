// How far a run is: one line that is rewritten on a terminal, plain lines now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace heddle {

class Progress {
 public:
  // Writes to `out`, which must outlive it. `start` of `steps` steps are done already.
  Progress(std::FILE* out, int64_t start, int64_t steps);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // After each step; `tokens` of this step.
  void step(int64_t step, double loss, int64_t tokens, size_t peak_bytes);
  // A line that stays: evaluations, checkpoints.
  void say(const std::string& line);
  // Time that is not training (evaluation, checkpoints) is left out of tokens/s between these two.
  void pause();
  void resume();

  double seconds() const;
  double tokens_per_second() const;

 private:
  using Clock = std::chrono::steady_clock;
  void clear_line();

  std::FILE* out_;
  bool terminal_;
  int64_t start_, steps_;
  int64_t tokens_ = 0;
  Clock::time_point resumed_;
  double seconds_ = 0.0;  // before resumed_
  bool paused_ = false;
  Clock::time_point last_line_;
  bool line_open_ = false;
};

// "1:05", "2:03:59".
std::string format_duration(double seconds);

}  // namespace heddle
