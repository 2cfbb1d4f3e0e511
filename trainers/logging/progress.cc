#include "trainers/logging/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/runtime/memory_stats.h"

namespace heddle {
namespace {

constexpr double kRefreshSeconds = 0.1;  // of the line on a terminal
constexpr double kLineSeconds = 10.0;    // between plain lines

int columns_of(std::FILE* out) {
  winsize size{};
  return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string bar(double part, int width) {
  const int full = static_cast<int>(std::lround(part * width));
  std::string text(static_cast<size_t>(width), '.');
  std::fill_n(text.begin(), full, '=');
  return "[" + text + "]";
}

}  // namespace

Progress::Progress(std::FILE* out, int64_t start, int64_t steps)
    : out_(out), terminal_(isatty(fileno(out)) != 0), start_(start), steps_(steps), resumed_(Clock::now()) {}

Progress::~Progress() {
  if (line_open_) std::fputc('\n', out_);
}

void Progress::step(int64_t step, double loss, int64_t tokens, size_t peak_bytes) {
  tokens_ += tokens;
  const Clock::time_point now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_line_).count();
  const bool last = step == steps_;
  if (since < (terminal_ ? kRefreshSeconds : kLineSeconds) && !last && last_line_ != Clock::time_point{}) return;
  last_line_ = now;
  const double left = seconds() / static_cast<double>(step - start_) * static_cast<double>(steps_ - step);
  const std::string text =
      fmt::format("step {}/{}  loss {:.4f}  {:.1f} k tokens/s  ETA {}  peak {}", step, steps_, loss,
                  tokens_per_second() / 1000.0, format_duration(left), format_bytes(peak_bytes));
  if (!terminal_) {
    fmt::print(out_, "{}\n", text);
    std::fflush(out_);
    return;
  }
  const int room = columns_of(out_) - 1 - static_cast<int>(text.size()) - 3;
  const std::string head =
      room >= 10 ? bar(static_cast<double>(step) / static_cast<double>(steps_), std::min(room, 30)) + " " : "";
  fmt::print(out_, "\r\033[K{}{}", head, text.substr(0, static_cast<size_t>(columns_of(out_) - 1)));
  std::fflush(out_);
  line_open_ = true;
}

void Progress::clear_line() {
  if (line_open_) std::fputs("\r\033[K", out_);
  line_open_ = false;
}

void Progress::say(const std::string& line) {
  clear_line();
  fmt::print(out_, "{}\n", line);
  std::fflush(out_);
}

void Progress::pause() {
  seconds_ = seconds();
  paused_ = true;
}

void Progress::resume() {
  paused_ = false;
  resumed_ = Clock::now();
}

double Progress::seconds() const {
  if (paused_) return seconds_;
  return seconds_ + std::chrono::duration<double>(Clock::now() - resumed_).count();
}

double Progress::tokens_per_second() const { return static_cast<double>(tokens_) / std::max(seconds(), 1e-9); }

std::string format_duration(double seconds) {
  const int64_t whole = std::llround(seconds);
  if (whole >= 3600) return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02d}", whole / 60, whole % 60);
}

}  // namespace heddle
