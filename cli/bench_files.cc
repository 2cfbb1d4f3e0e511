#include "cli/bench_files.h"

#include <fmt/format.h>

#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "cli/output_file.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tools/benchmark_report.h"

namespace heddle::cli {

namespace fs = std::filesystem;

namespace {

std::string chart_name(const std::string& suite, BenchmarkPass pass, BenchmarkQuantity quantity) {
  return fmt::format("{}_{}_{}.svg", suite, name(pass), name(quantity));
}

// All that the suites may write into the folder.
NamedFiles chart_files(const fs::path& folder, std::span<const BenchmarkSuite> suites) {
  std::set<std::string> names;
  for (const BenchmarkSuite& suite : suites) {
    for (const BenchmarkPass pass : BenchmarkOptions().passes) {
      for (const auto quantity : {BenchmarkQuantity::speed, BenchmarkQuantity::memory}) {
        names.insert(chart_name(suite.name, pass, quantity));
      }
    }
  }
  NamedFiles charts;
  for (const std::string& chart : names) charts.push_back({"--plot", folder / chart});
  return charts;
}

}  // namespace

BenchFiles::BenchFiles(fs::path json, fs::path csv, fs::path plot, std::span<const BenchmarkSuite> suites)
    : json_(std::move(json)), csv_(std::move(csv)), plot_(std::move(plot)) {
  NamedFiles inputs;
  for (const BenchmarkSuite& suite : suites) {
    for (const fs::path& file : suite.files) inputs.push_back({"a file of suite " + suite.name, file});
  }
  const NamedFiles tables = {{"--json", json_}, {"--csv", csv_}};
  const NamedFiles charts = plot_.empty() ? NamedFiles{} : chart_files(plot_, suites);
  NamedFiles all = tables;
  all.push_back({"--plot", plot_});
  all.insert(all.end(), charts.begin(), charts.end());
  check_distinct_files(all, inputs);
  check_writable_files(tables);
  if (plot_.empty()) return;
  std::error_code error;
  fs::create_directories(plot_, error);
  if (error) throw UsageError(fmt::format("--plot: {} cannot be made: {}", plot_.string(), error.message()));
  check_writable_files(charts);
}

void BenchFiles::add(const BenchmarkRow& row) {
  rows_.push_back(row);
  write(true);
  if (plot_.empty()) return;
  const std::string chart = chart_name(row.suite, row.pass, row.quantity);
  std::vector<BenchmarkRow>& points = charts_[chart];
  points.push_back(row);
  const bool speed = row.quantity == BenchmarkQuantity::speed;
  const std::string title = chart.substr(0, chart.size() - std::string_view(".svg").size());
  write_file(plot_ / chart, to_svg(points, title, speed ? "ms" : "MiB"));
}

void BenchFiles::finish() const {
  if (!rows_.empty()) write(false);
}

void BenchFiles::write(bool regular) const {
  if (!json_.empty() && is_written_through(json_) != regular) write_file(json_, to_json(rows_));
  if (!csv_.empty() && is_written_through(csv_) != regular) write_file(csv_, to_csv(rows_));
}

}  // namespace heddle::cli
