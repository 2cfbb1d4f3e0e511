#include "trainers/logging/csv_logger.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/runtime/unsigned_nan.h"

namespace heddle {
namespace {

constexpr std::string_view kColumns =
    "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy";
constexpr std::string_view kSkippedColumn = ",skipped_steps";

std::string header(bool with_skipped) { return fmt::format("{}{}\n", kColumns, with_skipped ? kSkippedColumn : ""); }

std::string field(double value) { return fmt::format("{:.9g}", unsigned_nan(value)); }

int64_t step_of_row(std::string_view line) {
  const int64_t more = std::count(line.begin(), line.end(), ',') - std::count(kColumns.begin(), kColumns.end(), ',');
  if (more != 0 && more != 1) return -1;  // with or without skipped steps
  int64_t step = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), step);
  return error == std::errc() && *end == ',' && step > 0 ? step : -1;
}

// Rows with skipped steps or without; a file of the other kind loses that column, or gets it with 0.
StepLogFormat format_of(bool with_skipped, const LoggingConfig& logging) {
  return {.header = header(with_skipped),
          .step_of = step_of_row,
          .is_one_line_a_step = true,
          .other_header = header(!with_skipped),
          .converted =
              [with_skipped](std::string_view line) {
                return with_skipped ? fmt::format("{},0\n", line.substr(0, line.size() - 1))
                                    : fmt::format("{}\n", line.substr(0, line.rfind(',')));
              },
          .logging = logging};
}

}  // namespace

CsvLogger::CsvLogger(std::filesystem::path path, Note note, const LoggingConfig& config)
    : config_(config), log_(std::move(path), format_of(false, config), std::move(note)) {}

void CsvLogger::start(const StartEvent& event) {
  with_skipped_ = event.skip_nonfinite > 0;
  log_.set_format(format_of(with_skipped_, config_));
  log_.start(event);
}

void CsvLogger::step(const StepEvent& event) {
  end_row();
  row_ = fmt::format("{},{},{},{},{}", event.step, event.total_tokens, field(event.loss), field(event.gradient_norm),
                     field(event.learning_rate));
  evaluation_ = ",,";
  skipped_ = with_skipped_ ? fmt::format(",{}", event.skipped_steps) : std::string();
  is_held_ = config_.holds(event);
}

void CsvLogger::evaluation(const EvaluationEvent& event) {
  evaluation_ = fmt::format(",{},{}", field(event.loss), std::isnan(event.accuracy) ? "" : field(event.accuracy));
  is_held_ = true;
}

// The row of a step is complete when the next step is told, or when the file is written.
void CsvLogger::end_row() {
  if (!row_.empty() && is_held_) log_.add(row_ + evaluation_ + skipped_ + "\n");
  row_.clear();
}

void CsvLogger::flush() {
  end_row();
  log_.flush();
}

}  // namespace heddle
