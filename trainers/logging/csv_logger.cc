#include "trainers/logging/csv_logger.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kColumns =
    "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy";
constexpr std::string_view kSkippedColumn = ",skipped_steps";

std::string header(bool with_skipped) { return fmt::format("{}{}\n", kColumns, with_skipped ? kSkippedColumn : ""); }

// How many columns of skipped steps the row has, 0 or 1; nothing when it is no row.
std::optional<int64_t> skipped_columns(std::string_view line) {
  const int64_t more = std::count(line.begin(), line.end(), ',') - std::count(kColumns.begin(), kColumns.end(), ',');
  return more == 0 || more == 1 ? std::optional(more) : std::nullopt;
}

// The row with or without that column.
std::string converted(std::string_view line, bool with_skipped) {
  const bool has_skipped = skipped_columns(line) == 1;
  if (has_skipped == with_skipped) return std::string(line);
  return has_skipped ? fmt::format("{}\n", line.substr(0, line.rfind(',')))
                     : fmt::format("{},0\n", line.substr(0, line.size() - 1));
}

std::string field(double value) { return std::isnan(value) ? std::string() : fmt::format("{:.9g}", value); }

// The step of a row, or 0 when the line is none.
int64_t step_of(std::string_view line) {
  if (!line.ends_with('\n') || !skipped_columns(line)) return 0;
  int64_t step = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), step);
  return error == std::errc() && *end == ',' && step > 0 ? step : 0;
}

// What of the text of a file are rows of steps up to `last_step`, each later than the one before it.
struct KeptRows {
  std::string text;      // with a header
  int64_t last = 0;      // step of the last row
  bool damaged = false;  // something else stood between them
};

KeptRows kept_rows(std::string_view text, int64_t last_step, bool with_skipped) {
  KeptRows kept;
  kept.text = header(with_skipped);
  kept.damaged = !text.starts_with(header(false)) && !text.starts_with(header(true));
  for (size_t begin = kept.damaged ? 0 : text.find('\n') + 1; begin < text.size() && kept.last < last_step;) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    const std::string_view line = text.substr(begin, end - begin);
    begin = end;
    const int64_t step = step_of(line);
    if (step > kept.last && step <= last_step) {
      kept.text += converted(line, with_skipped);
      kept.last = step;
    } else {
      kept.damaged = kept.damaged || step <= kept.last;
    }
  }
  return kept;
}

// The metrics of the run that a checkpoint RUN/checkpoints/step_N belongs to. Where checkpoints is a symbolic link,
// they lie beside the link.
fs::path metrics_of(const fs::path& checkpoint) {
  fs::path named = fs::absolute(checkpoint).lexically_normal();
  if (!named.has_filename()) named = named.parent_path();  // it was given as "step_N/"
  named = named.parent_path().parent_path() / "metrics.csv";
  if (fs::exists(named)) return named;
  return fs::canonical(checkpoint).parent_path().parent_path() / "metrics.csv";
}

}  // namespace

CsvLogger::CsvLogger(fs::path path, Note note) : path_(std::move(path)), note_(std::move(note)) {}

void CsvLogger::start(const StartEvent& event) {
  with_skipped_ = event.skip_nonfinite > 0;
  if (!event.checkpoint) return begin(event);
  std::error_code ignored;
  const bool same_run = fs::equivalent(event.checkpoint->parent_path(), path_.parent_path() / "checkpoints", ignored) &&
                        fs::exists(path_);
  go_on(same_run ? path_ : metrics_of(*event.checkpoint), event.step);
}

// A start that was cut off before its first checkpoint may have left rows, which this one writes again. More rows than
// that are of a run whose checkpoints are gone.
void CsvLogger::begin(const StartEvent& event) {
  if (!fs::exists(path_)) return;
  const KeptRows before = kept_rows(read_file(path_), INT64_MAX, with_skipped_);
  const int64_t first_checkpoint = event.checkpoint_every > 0 ? event.checkpoint_every : event.steps;
  if (before.last > first_checkpoint || before.damaged) {
    keep_aside("it belongs to an earlier run, of which there is no checkpoint", "before");
  }
  fs::remove(path_);
}

void CsvLogger::go_on(const fs::path& from, int64_t last_step) {
  std::error_code ignored;
  const bool in_place = fs::equivalent(from, path_, ignored);
  if (!in_place && fs::exists(path_)) keep_aside("it belongs to another run", "before");
  if (!fs::exists(from)) {
    if (last_step > 0) note_(fmt::format("{} is missing; the rows up to step {} are lost", from.string(), last_step));
    write_file(path_, header(with_skipped_));
    return;
  }
  const std::string text = read_file(from);
  const KeptRows kept = kept_rows(text, last_step, with_skipped_);
  if (kept.damaged && in_place) keep_aside("some of its rows are damaged", "damaged");
  if (kept.last < last_step || kept.damaged) {
    note_(fmt::format("{}: rows before step {} are missing or damaged, and the others are kept", from.string(),
                      last_step + 1));
  }
  if (in_place && text.starts_with(kept.text)) {
    fs::resize_file(path_, kept.text.size());
  } else {
    write_file(path_, kept.text);
  }
}

void CsvLogger::keep_aside(const std::string& reason, const std::string& suffix) {
  fs::path aside = path_.string() + "." + suffix;
  for (int number = 2; fs::exists(aside); ++number) aside = fmt::format("{}.{}.{}", path_.string(), suffix, number);
  write_file(aside, read_file(path_));
  note_(fmt::format("{} is kept as {}: {}", path_.string(), aside.filename().string(), reason));
}

void CsvLogger::step(const StepEvent& event) {
  end_row();
  row_ = fmt::format("{},{},{},{},{}", event.step, event.total_tokens, field(event.loss), field(event.gradient_norm),
                     field(event.learning_rate));
  evaluation_ = ",,";
  skipped_ = with_skipped_ ? fmt::format(",{}", event.skipped_steps) : std::string();
}

void CsvLogger::evaluation(const EvaluationEvent& event) {
  evaluation_ = fmt::format(",{},{}", field(event.loss), field(event.accuracy));
}

// The row of a step is complete when the next step is told, or when the file is written.
void CsvLogger::end_row() {
  if (!row_.empty()) rows_ += row_ + evaluation_ + skipped_ + "\n";
  row_.clear();
}

void CsvLogger::flush() {
  end_row();
  if (!fs::exists(path_)) {
    write_file(path_, header(with_skipped_));
    file_.reset();
  }
  if (!file_) file_ = std::make_unique<AppendFile>(path_);
  file_->append(rows_);
  rows_.clear();
}

}  // namespace heddle
