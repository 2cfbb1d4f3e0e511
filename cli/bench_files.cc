#include "cli/bench_files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tools/benchmark_report.h"

namespace heddle::cli {
namespace {

namespace fs = std::filesystem;

bool is_written_once(const fs::path& path) { return fs::exists(path) && !fs::is_regular_file(path); }

void check_folder(const char* option, const fs::path& folder) {
  if (!fs::is_directory(folder)) throw UsageError(fmt::format("{}: {} is no folder", option, folder.string()));
  if (::access(folder.c_str(), W_OK) == 0) return;
  throw UsageError(fmt::format("{}: {} cannot be written: {}", option, folder.string(), std::strerror(errno)));
}

void check_file(const char* option, const fs::path& path) {
  if (path.empty()) return;
  if (fs::is_directory(path)) throw UsageError(fmt::format("{}: {} is a folder", option, path.string()));
  if (is_written_once(path)) return;
  check_folder(option, path.has_parent_path() ? path.parent_path() : fs::path("."));
}

}  // namespace

BenchFiles::BenchFiles(fs::path json, fs::path csv, fs::path plot)
    : json_(std::move(json)), csv_(std::move(csv)), plot_(std::move(plot)) {
  check_file("--json", json_);
  check_file("--csv", csv_);
  if (plot_.empty()) return;
  std::error_code error;
  fs::create_directories(plot_, error);
  if (error) throw UsageError(fmt::format("--plot: {} cannot be made: {}", plot_.string(), error.message()));
  check_folder("--plot", plot_);
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
