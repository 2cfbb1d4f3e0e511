#include "trainers/logging/csv_logger.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHeader =
    "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

std::string field(double value) { return std::isnan(value) ? std::string() : fmt::format("{:.9g}", value); }

}  // namespace

CsvLogger::CsvLogger(fs::path path, Note note) : path_(std::move(path)), note_(std::move(note)), text_(kHeader) {}

void CsvLogger::start(const StartEvent& event) {
  if (!event.checkpoint) return;
  const fs::path metrics = fs::canonical(*event.checkpoint).parent_path().parent_path() / "metrics.csv";
  if (fs::exists(metrics)) {
    load(metrics, event.step);
  } else {
    note_(fmt::format("{} is missing; the rows up to step {} are lost", metrics.string(), event.step));
  }
  flush();
}

void CsvLogger::load(const fs::path& from, int64_t last_step) {
  const std::string text = read_file(from);
  check(text.starts_with(kHeader), "{}: the first line is not that of a heddle metrics file", from.string());
  size_t end = kHeader.size();
  int64_t step = 0;  // of the last row; the first may be later than 1 when the file once was lost
  while (step < last_step) {
    int64_t found = 0;
    std::from_chars(text.data() + end, text.data() + text.size(), found);
    const size_t newline = text.find('\n', end);
    check(found > 0 && (found == step + 1 || step == 0) && found <= last_step && newline != std::string::npos,
          "{}: the row after step {} is missing or damaged, but the checkpoint is of step {}", from.string(), step,
          last_step);
    step = found;
    end = newline + 1;
  }
  text_ = text.substr(0, end);
}

void CsvLogger::step(const StepEvent& event) {
  end_row();
  row_ = fmt::format("{},{},{},{},{}", event.step, event.total_tokens, field(event.loss), field(event.gradient_norm),
                     field(event.learning_rate));
  evaluation_ = ",,";
}

void CsvLogger::evaluation(const EvaluationEvent& event) {
  evaluation_ = fmt::format(",{},{}", field(event.loss), field(event.accuracy));
}

// The row of a step is complete when the next step is told, or when the file is written.
void CsvLogger::end_row() {
  if (!row_.empty()) text_ += row_ + evaluation_ + "\n";
  row_.clear();
}

void CsvLogger::flush() {
  end_row();
  write_file(path_, text_);
}

}  // namespace heddle
