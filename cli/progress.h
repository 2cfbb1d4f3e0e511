// How far a command is, on stderr: on a terminal one line that is rewritten often, elsewhere a line every ten seconds.
#pragma once

#include <chrono>
#include <string>

namespace heddle::cli {

class Progress {
 public:
  Progress();
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Shows line(seconds since the start), where it is time to.
  template <class Line>
  void tell(const Line& line) {
    if (is_due()) show(line(std::chrono::duration<double>(last_ - start_).count()));
  }
  // Takes the line off the terminal, before something else is printed there.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool is_due();
  void show(const std::string& line);

  bool is_terminal_, is_line_open_ = false;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

}  // namespace heddle::cli
