// heddle bench
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "core/io/atomic_file.h"
#include "tools/benchmark_report.h"

namespace heddle::cli {
namespace {

struct BenchArguments {
  DeviceOptions device;
  std::vector<std::string> suites = {"srms_norm"};
  BenchmarkOptions benchmark;
  std::string json, csv, plot;
};

// The copy rate is taken on 4 GiB where the device holds two of them, else on what the CPU copies in reasonable time.
int64_t copy_bytes(const Context& context) {
  const bool is_gpu = context.device().type == DeviceType::cuda;
  return is_gpu && context.properties().memory_bytes > (size_t{10} << 30) ? int64_t{4} << 30 : int64_t{256} << 20;
}

void write_plots(const std::string& folder, const std::vector<BenchmarkRow>& rows) {
  std::filesystem::create_directories(folder);
  std::map<std::string, std::vector<BenchmarkRow>> charts;
  for (const BenchmarkRow& row : rows) {
    charts[fmt::format("{}_{}_{}", row.suite, name(row.pass), name(row.quantity))].push_back(row);
  }
  for (const auto& [chart, points] : charts) {
    const bool speed = points.front().quantity == BenchmarkQuantity::speed;
    write_file(std::filesystem::path(folder) / (chart + ".svg"), to_svg(points, chart, speed ? "ms" : "MiB"));
  }
}

int run(const BenchArguments& arguments, const Registry& registry) {
  std::vector<BenchmarkSuite> suites;
  for (const std::string& suite : arguments.suites) suites.push_back(load_benchmark_suite(suite, registry));
  const bool times = std::find(arguments.benchmark.quantities.begin(), arguments.benchmark.quantities.end(),
                               BenchmarkQuantity::speed) != arguments.benchmark.quantities.end();
  const std::unique_ptr<Context> context = open_device(arguments.device, times ? DeviceUse::compute : DeviceUse::count);
  double copy_rate = 0.0;
  if (times && !context->is_meta()) {
    copy_rate = measure_copy_rate(*context, copy_bytes(*context));
    context->allocator().release_cached();
    fmt::print("copy rate on {}: {:.0f} GB/s, read and write counted\n", to_string(context->device()),
               copy_rate * 1e-9);
  }
  fmt::print("{}\n", table_header());
  std::vector<BenchmarkRow> rows;
  for (const BenchmarkSuite& suite : suites) {
    std::vector<PublishedFigure> published;
    if (!suite.published.empty()) published = read_published(suite.published);
    const auto report = [&](const BenchmarkRow& row) {
      rows.push_back(row);
      fmt::print("{}\n", table_line(row, best_published(published, row)));
      std::fflush(stdout);
    };
    run_benchmark(*context, suite, arguments.benchmark, copy_rate, report, registry);
  }
  if (!arguments.json.empty()) write_file(arguments.json, to_json(rows));
  if (!arguments.csv.empty()) write_file(arguments.csv, to_csv(rows));
  if (!arguments.plot.empty()) write_plots(arguments.plot, rows);
  return kDone;
}

}  // namespace

Run add_bench(CLI::App& command, const Registry& registry) {
  const auto arguments = std::make_shared<BenchArguments>();
  command
      .add_option("SUITE", arguments->suites,
                  "Suites: names below configs/bench, YAML files, or operators, whose cases are measured")
      ->capture_default_str();
  add_device_options(command, arguments->device, DeviceUse::count);
  command.add_option("--n", arguments->benchmark.sizes, "Sizes instead of the suite's, as 1024,4096")->delimiter(',');
  command.add_option("--config", arguments->benchmark.configs, "Only these configs of the suites")->delimiter(',');
  const std::map<std::string, BenchmarkPass> passes = {
      {"fwd", BenchmarkPass::fwd}, {"bwd", BenchmarkPass::bwd}, {"bwd_first", BenchmarkPass::bwd_first}};
  command.add_option("--pass", arguments->benchmark.passes, "Only these passes: fwd, bwd, bwd_first")
      ->delimiter(',')
      ->transform(CLI::CheckedTransformer(passes));
  const std::map<std::string, BenchmarkQuantity> quantities = {{"speed", BenchmarkQuantity::speed},
                                                               {"memory", BenchmarkQuantity::memory}};
  command.add_option("--quantity", arguments->benchmark.quantities, "Only this: speed or memory")
      ->delimiter(',')
      ->transform(CLI::CheckedTransformer(quantities));
  command.add_option("--json", arguments->json, "Write the rows as JSON");
  command.add_option("--csv", arguments->csv, "Write the rows as CSV");
  command.add_option("--plot", arguments->plot,
                     "Write a chart (SVG) for each suite, pass and quantity into this folder");
  return [arguments, &registry] { return run(*arguments, registry); };
}

}  // namespace heddle::cli
