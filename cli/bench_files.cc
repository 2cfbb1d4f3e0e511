#include "cli/bench_files.h"

#include <fmt/format.h>

#include <system_error>
#include <utility>

#include "cli/output_file.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tools/benchmark_report.h"

namespace heddle::cli {

namespace fs = std::filesystem;

BenchFiles::BenchFiles(fs::path json, fs::path csv, fs::path plot)
    : json_(std::move(json)), csv_(std::move(csv)), plot_(std::move(plot)) {
  check_output_file("--json", json_);
  check_output_file("--csv", csv_);
  if (plot_.empty()) return;
  std::error_code error;
  fs::create_directories(plot_, error);
  if (error) throw UsageError(fmt::format("--plot: {} cannot be made: {}", plot_.string(), error.message()));
  check_output_folder("--plot", plot_);
}

void BenchFiles::add(const BenchmarkRow& row) {
  rows_.push_back(row);
  write(true);
  if (plot_.empty()) return;
  const std::string chart = fmt::format("{}_{}_{}", row.suite, name(row.pass), name(row.quantity));
  std::vector<BenchmarkRow>& points = charts_[chart];
  points.push_back(row);
  const bool speed = row.quantity == BenchmarkQuantity::speed;
  write_file(plot_ / (chart + ".svg"), to_svg(points, chart, speed ? "ms" : "MiB"));
}

void BenchFiles::finish() const {
  if (!rows_.empty()) write(false);
}

void BenchFiles::write(bool regular) const {
  if (!json_.empty() && is_written_once(json_) != regular) write_file(json_, to_json(rows_));
  if (!csv_.empty() && is_written_once(csv_) != regular) write_file(csv_, to_csv(rows_));
}

}  // namespace heddle::cli
