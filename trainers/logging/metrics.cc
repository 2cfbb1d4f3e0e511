#include "trainers/logging/metrics.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr std::string_view kHeader =
    "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

std::string field(double value) { return std::isnan(value) ? std::string() : fmt::format("{:.9g}", value); }

}  // namespace

Metrics::Metrics(std::filesystem::path path) : path_(std::move(path)), text_(kHeader) {}

void Metrics::load(const std::filesystem::path& from, int64_t last_step) {
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

void Metrics::add(const MetricsRow& row) {
  text_ += fmt::format("{},{},{},{},{},{},{}\n", row.step, row.tokens, field(row.loss), field(row.gradient_norm),
                       field(row.learning_rate), field(row.validation_loss), field(row.validation_accuracy));
}

void Metrics::save() const { write_file(path_, text_); }

}  // namespace heddle
