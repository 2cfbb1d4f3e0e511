// Seconds of the host's clock.
#pragma once

#include <chrono>

namespace heddle {

// Adds up the time between start() and stop().
class Stopwatch {
 public:
  void start() { started_ = Clock::now(); }
  void stop() { seconds_ += std::chrono::duration<double>(Clock::now() - started_).count(); }
  double seconds() const { return seconds_; }
  // The seconds since start(), while it runs.
  double running_seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point started_;
  double seconds_ = 0.0;
};

}  // namespace heddle
