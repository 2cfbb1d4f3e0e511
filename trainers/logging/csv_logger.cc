#include "trainers/logging/csv_logger.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <system_error>
#include <utility>

namespace heddle {
namespace {

constexpr std::string_view kHeader =
    "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

std::string field(double value) { return std::isnan(value) ? std::string() : fmt::format("{:.9g}", value); }

int64_t step_of(std::string_view line) {
  const auto commas = std::count(kHeader.begin(), kHeader.end(), ',');
  if (std::count(line.begin(), line.end(), ',') != commas) return -1;
  int64_t step = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), step);
  return error == std::errc() && *end == ',' && step > 0 ? step : -1;
}

}  // namespace

CsvLogger::CsvLogger(std::filesystem::path path, Note note, const LoggingConfig& config)
    : config_(config),
      log_(std::move(path), {.header = std::string(kHeader), .step_of = step_of, .is_one_line_a_step = true},
           std::move(note)) {}

void CsvLogger::step(const StepEvent& event) {
  end_row();
  row_ = fmt::format("{},{},{},{},{}", event.step, event.total_tokens, field(event.loss), field(event.gradient_norm),
                     field(event.learning_rate));
  evaluation_ = ",,";
  is_held_ = config_.holds(event);
}

void CsvLogger::evaluation(const EvaluationEvent& event) {
  evaluation_ = fmt::format(",{},{}", field(event.loss), field(event.accuracy));
  is_held_ = true;
}

// The row of a step is complete when the next step is told, or when the file is written.
void CsvLogger::end_row() {
  if (!row_.empty() && is_held_) log_.add(row_ + evaluation_ + "\n");
  row_.clear();
}

void CsvLogger::flush() {
  end_row();
  log_.flush();
}

}  // namespace heddle
