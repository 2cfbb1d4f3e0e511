// When the files of a run, which others watch, are to be brought up to date though nothing else asks for it.
#pragma once

#include <chrono>

namespace heddle {

// Seconds since 1970.
inline double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class WriteClock {
 public:
  // Whether ten seconds have gone by since it last returned true, or since it was made.
  bool is_due() {
    const Clock::time_point now = Clock::now();
    if (now - last_ < std::chrono::seconds(10)) return false;
    last_ = now;
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

// Tokens a second in the steps from one that was written to the next.
class TokenRate {
 public:
  // After a step, with the tokens since the last call and the seconds in all steps since the start.
  double next(double tokens, double seconds) {
    const double rate = seconds > seconds_ ? tokens / (seconds - seconds_) : 0.0;
    seconds_ = seconds;
    return rate;
  }

 private:
  double seconds_ = 0.0;
};

}  // namespace heddle
