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

// "1.2201 nats/byte (1.760 bits/byte)", "5.6397 nats/token"
std::string describe_loss(double loss, bool is_text) {
  if (!is_text) return fmt::format("{:.4f} nats/token", unsigned_nan(loss));
  return fmt::format("{:.4f} nats/byte ({:.3f} bits/byte)", unsigned_nan(loss), unsigned_nan(loss / std::log(2.0)));
}

// Of an EvaluationEvent, or of the best evaluation of a run.
std::string describe(const auto& evaluation, bool is_text) {
  std::string text = describe_loss(evaluation.loss, is_text);
  if (!is_text && !std::isnan(evaluation.bits_per_byte)) {
    text += fmt::format(" ({:.3f} bits/byte)", evaluation.bits_per_byte);
  }
  if (!std::isnan(evaluation.accuracy)) text += fmt::format(", accuracy {:.2f} %", 100.0 * evaluation.accuracy);
  return text;
}

std::string describe_device(const StartEvent& start) {
  std::string text = to_string(start.device);
  if (start.device.type == DeviceType::cpu)
    return text + fmt::format(" with {} thread{}", start.threads, start.threads == 1 ? "" : "s");
  return start.device_name.empty() ? text : text + ", " + start.device_name;
}

// What one would write into a lab book about a run.
std::string summary(const StartEvent& start, const EndEvent& end) {
  const EvaluationEvent& last = *end.evaluation;
  std::string text;
  const auto line = [&](const char* name, const std::string& value) { text += fmt::format("\n{:<12}{}", name, value); };
  line("config", start.program.empty() ? start.config : fmt::format("{} ({})", start.config, start.program));
  line("device", start.processes > 1
                     ? fmt::format("{} processes, the first on {}", start.processes, describe_device(start))
                     : describe_device(start));
  line("model", fmt::format("{} parameters, {}", start.parameters, name(start.dtype)));
  line("training",
       fmt::format("steps {} to {} of {}, batch {} x {}, {:.4g} M tokens", end.start + 1, end.step, end.steps,
                   start.batch_size, start.sequence_length, static_cast<double>(end.tokens) * 1e-6));
  line("time", fmt::format("{}, {} of it in steps: {:.1f} k tokens/s", format_duration(end.elapsed),
                           format_duration(end.seconds), thousands_per_second(end.tokens, end.seconds)));
  line("memory", fmt::format("{} at the peak", format_bytes(end.peak_bytes)));
  const auto loss_line = [&](const char* name, const auto& evaluation) {
    line(name, fmt::format("{} in validation after step {}", describe(evaluation, last.is_text), evaluation.step));
  };
  if (end.best) loss_line("best loss", *end.best);
  loss_line("last loss", last);
  line("run folder", start.folder.string());
  return text.substr(1);
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
  start_ = event;
  if (event.checkpoint) say(fmt::format("resumed from {}", event.checkpoint->string()));
  say(fmt::format("{} parameters, {}, batch {} x {} on {}; run folder {}", format_parameters(event.parameters),
                  name(event.dtype), event.batch_size, event.sequence_length, describe_device(event),
                  event.folder.string()));
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
      event.elapsed / static_cast<double>(event.step - start_.step) * static_cast<double>(event.steps - event.step);
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
  say(fmt::format("step {}: validation loss {}", event.step, describe(event, event.is_text)));
}

void ConsoleLogger::end(const EndEvent& event) {
  if (!event.finished) {
    say(fmt::format("stopped after step {} of {}; to go on from {}, train again with the same config and --resume auto",
                    event.step, event.steps, event.checkpoint.string()));
  } else if (event.evaluation) {
    say(summary(start_, event));
  }
}

void ConsoleLogger::profile(const ProfileEvent& event) {
  say(event.tables);
  if (!event.trace.empty()) say(fmt::format("trace written to {}", event.trace.string()));
}

void ConsoleLogger::sample(const SampleEvent& event) {
  if (!event.is_last) say(fmt::format("sample after step {}:\n{}", event.step, event.text));
}

std::string format_duration(double seconds) {
  const int64_t whole = std::llround(seconds);
  if (whole >= 3600) return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02d}", whole / 60, whole % 60);
}

std::string format_parameters(int64_t count) {
  return count < 100'000 ? std::to_string(count) : fmt::format("{:.2f} M", static_cast<double>(count) * 1e-6);
}

}  // namespace heddle
