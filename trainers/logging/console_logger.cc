#include "trainers/logging/console_logger.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/runtime/memory_stats.h"
#include "core/runtime/message.h"
#include "core/runtime/unsigned_nan.h"

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

double thousands_per_second(int64_t tokens, double seconds) {
  return static_cast<double>(tokens) / std::max(seconds, 1e-9) / 1000.0;
}

std::string describe(const EvaluationEvent& event) {
  std::string text = fmt::format("validation loss {:.4f}", unsigned_nan(event.loss));
  if (!event.is_text && !std::isnan(event.bits_per_byte)) {
    text += fmt::format(" nats/token ({:.3f} bits/byte)", event.bits_per_byte);
  }
  if (event.is_text) text += fmt::format(" nats/byte ({:.3f} bits/byte)", unsigned_nan(event.loss / std::log(2.0)));
  if (!std::isnan(event.accuracy)) text += fmt::format(", accuracy {:.2f} %", 100.0 * event.accuracy);
  return text;
}

}  // namespace

ConsoleLogger::ConsoleLogger(std::FILE* out) : out_(out), is_terminal_(isatty(fileno(out)) != 0) {}

ConsoleLogger::~ConsoleLogger() {
  if (is_line_open_) print_message(out_, "\n");
}

void ConsoleLogger::say(const std::string& line) {
  print_message(out_, fmt::format("{}{}\n", is_line_open_ ? "\r\033[K" : "", line));
  is_line_open_ = false;
}

void ConsoleLogger::note(const std::string& line) { say("note: " + line); }

void ConsoleLogger::start(const StartEvent& event) {
  start_ = event.step;
  if (event.checkpoint) say(fmt::format("resumed from {}", event.checkpoint->string()));
  const bool is_cpu = event.device.type == DeviceType::cpu;
  say(fmt::format("{:.2f} M parameters, {}, batch {} x {} on {}{}; run folder {}",
                  static_cast<double>(event.parameters) / 1e6, name(event.dtype), event.batch_size,
                  event.sequence_length, to_string(event.device),
                  is_cpu ? fmt::format(" with {} threads", event.threads) : "", event.folder.string()));
  if (event.step < event.steps) return;
  say(fmt::format("nothing left to do: the run is at step {} of {}", event.step, event.steps));
}

void ConsoleLogger::step(const StepEvent& event) {
  tokens_ += event.tokens;
  const Clock::time_point now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_shown_).count();
  if (has_shown_ && since < (is_terminal_ ? kRefreshSeconds : kLineSeconds) && event.step != event.steps) return;
  last_shown_ = now;
  has_shown_ = true;
  const double left =
      event.elapsed / static_cast<double>(event.step - start_) * static_cast<double>(event.steps - event.step);
  const std::string text = fmt::format(
      "step {}/{}  loss {:.4f}  {:.1f} k tokens/s  ETA {}  peak {}", event.step, event.steps, unsigned_nan(event.loss),
      thousands_per_second(tokens_, event.seconds), format_duration(left), format_bytes(event.peak_bytes));
  if (!is_terminal_) {
    say(text);
    return;
  }
  const int columns = columns_of(out_);
  const int room = columns - 1 - static_cast<int>(text.size()) - 3;
  const double part = static_cast<double>(event.step) / static_cast<double>(event.steps);
  const std::string head = room >= 10 ? bar(part, std::min(room, 30)) + " " : "";
  print_message(out_, fmt::format("\r\033[K{}{}", head, text.substr(0, static_cast<size_t>(columns - 1))));
  is_line_open_ = true;
}

void ConsoleLogger::evaluation(const EvaluationEvent& event) {
  say(fmt::format("step {}: {}", event.step, describe(event)));
}

void ConsoleLogger::end(const EndEvent& event) {
  if (!event.finished) {
    say(fmt::format("stopped after step {} of {}; to go on from {}, train again with the same config and --resume auto",
                    event.step, event.steps, event.checkpoint.string()));
  } else if (event.evaluation) {
    say(fmt::format("{} steps in {}, {:.1f} k tokens/s, peak memory {}; {}", event.step - event.start,
                    format_duration(event.elapsed), thousands_per_second(event.tokens, event.seconds),
                    format_bytes(event.peak_bytes), describe(*event.evaluation)));
  }
}

void ConsoleLogger::sample(const SampleEvent& event) {
  if (!event.is_last) say(fmt::format("sample after step {}:\n{}", event.step, event.text));
}

std::string format_duration(double seconds) {
  const int64_t whole = std::llround(seconds);
  if (whole >= 3600) return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02d}", whole / 60, whole % 60);
}

}  // namespace heddle
