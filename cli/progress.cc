#include "cli/progress.h"

#include <unistd.h>

#include <cstdio>

#include "core/runtime/message.h"

namespace heddle::cli {

Progress::Progress() : is_terminal_(isatty(STDERR_FILENO) != 0) {}

bool Progress::is_due() {
  const Clock::time_point now = Clock::now();
  if (now - last_ < (is_terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000))) return false;
  last_ = now;
  return true;
}

void Progress::show(const std::string& line) {
  print_message(stderr, is_terminal_ ? "\r\033[K" + line : line + "\n");
  is_line_open_ = is_terminal_;
}

void Progress::clear() {
  if (is_line_open_) print_message(stderr, "\r\033[K");
  is_line_open_ = false;
}

}  // namespace heddle::cli
