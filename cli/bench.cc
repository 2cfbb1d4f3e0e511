// heddle bench
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench_files.h"
#include "cli/command.h"
#include "cli/device.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "cli/signals.h"
#include "cli/standard_streams.h"
#include "core/io/file_identity.h"
#include "core/runtime/error.h"
#include "tools/benchmark_report.h"

namespace heddle::cli {
namespace {

struct BenchArguments {
  DeviceOptions device;
  std::vector<std::string> suites = {"srms_norm"};
  std::vector<std::string> configs;  // as they were given
  BenchmarkOptions benchmark;
  std::string json, csv, plot;
};

// The copy rate is taken on 4 GiB where the device holds two of them, else on what the CPU copies in reasonable time.
int64_t copy_bytes(const Context& context) {
  const bool is_gpu = context.device().type == DeviceType::cuda;
  return is_gpu && context.properties().memory_bytes > (size_t{10} << 30) ? int64_t{4} << 30 : int64_t{256} << 20;
}

// The names that --config gives: a name, or several between commas. Those of cases hold commas themselves.
std::vector<std::string> config_names(const std::vector<std::string>& given,
                                      const std::vector<BenchmarkSuite>& suites) {
  std::vector<std::string> names;
  for (const std::string& text : given) {
    const bool is_name = std::any_of(suites.begin(), suites.end(), [&](const BenchmarkSuite& suite) {
      const std::vector<std::string> of_suite = suite.config_names();
      return std::find(of_suite.begin(), of_suite.end(), text) != of_suite.end();
    });
    const std::vector<std::string> parts = is_name ? std::vector<std::string>{text} : split_at_commas(text);
    names.insert(names.end(), parts.begin(), parts.end());
  }
  return names;
}

// Throws UsageError for a suite that is given twice, and for two of one name, whose rows could not be told apart.
std::vector<BenchmarkSuite> load_suites(const std::vector<std::string>& given, const Registry& registry) {
  std::vector<BenchmarkSuite> suites;
  std::map<std::string, FileIdentity> files;  // that the suites of these names were read from
  for (const std::string& text : given) {
    const BenchmarkSuite& suite = suites.emplace_back(load_benchmark_suite(text, registry));
    const FileIdentity file = suite.files.empty() ? FileIdentity{} : file_identity(suite.files.front());
    const auto [other, is_new] = files.emplace(suite.name, file);
    if (is_new) continue;
    if (other->second == file) throw UsageError(text + " is given twice");
    throw UsageError(fmt::format("{} is a second suite of the name '{}': expected another name, by the key 'suite'",
                                 text, suite.name));
  }
  return suites;
}

double print_copy_rate(Context& context, const TableStream& table) {
  const double copy_rate = measure_copy_rate(context, copy_bytes(context));
  context.allocator().release_cached();
  table.print(fmt::format("copy rate on {}: {:.0f} GB/s, read and write counted\n", to_string(context.device()),
                          copy_rate * 1e-9));
  return copy_rate;
}

// What can be wrong is found before anything is measured, which may take long.
int run(const BenchArguments& arguments, const Registry& registry) {
  // Before the device, which starts threads.
  const Signals& signals = Signals::install("stopping after this row; a second signal stops at once");
  BenchmarkOptions options = arguments.benchmark;
  options.stop_requested = [&] { return signals.stop_requested(); };
  const std::vector<BenchmarkQuantity>& quantities = options.quantities;
  const bool times = std::find(quantities.begin(), quantities.end(), BenchmarkQuantity::speed) != quantities.end();
  const std::vector<BenchmarkSuite> suites = load_suites(arguments.suites, registry);
  std::vector<std::vector<PublishedFigure>> published;
  for (const BenchmarkSuite& suite : suites) {
    const std::string& figures = suite.published;
    published.push_back(figures.empty() ? std::vector<PublishedFigure>{} : read_published(figures));
  }
  options.configs = config_names(arguments.configs, suites);
  const std::unique_ptr<Context> context = open_device(arguments.device, times ? DeviceUse::compute : DeviceUse::count);
  check_choice(suites, options, context->device());
  check_fit(suites, options, context->device(), registry);
  BenchFiles files(arguments.json, arguments.csv, arguments.plot, suites);

  const bool has_operators =
      std::any_of(suites.begin(), suites.end(), [](const BenchmarkSuite& suite) { return !suite.configs.empty(); });
  const TableStream table({arguments.json, arguments.csv});
  const double copy_rate = times && has_operators && !context->is_meta() ? print_copy_rate(*context, table) : 0.0;
  table.print(table_header() + "\n");
  bool finished = true;
  for (size_t i = 0; i < suites.size() && finished; ++i) {
    const auto report = [&](const BenchmarkRow& row) {
      files.add(row);
      table.print(table_line(row, best_published(published[i], row)) + "\n");
      finish_stdout();  // nobody may be there to read on
    };
    try {
      finished = run_benchmark(*context, suites[i], options, copy_rate, report, registry);
    } catch (const std::exception&) {
      files.finish();  // the rows before the one that failed
      throw;
    }
  }
  files.finish();
  return finished ? kDone : kInterrupted;
}

}  // namespace

Run add_bench(CLI::App& command, const Registry& registry) {
  const auto arguments = std::make_shared<BenchArguments>();
  BenchmarkOptions& benchmark = arguments->benchmark;
  command
      .add_option("suite", arguments->suites,
                  "Suites: names below configs/bench, YAML files, or operators, whose cases are measured")
      ->option_text("SUITE... [srms_norm]");
  add_device_options(command, arguments->device, DeviceUse::count);
  add_numbers(command, "--n", benchmark.sizes,
              "Sizes instead of the suite's, as 1024,4096; of cases with fixed shapes, only those of these sizes",
              Range::at_least(1))
      ->option_text("N,...");
  command.add_option("--config", arguments->configs, "Only these configs of the suites; repeatable")
      ->allow_extra_args(false)
      ->option_text("NAME,...");
  const Choices<BenchmarkPass> passes = {{"fwd", BenchmarkPass::fwd},
                                         {"bwd", BenchmarkPass::bwd},
                                         {"bwd_first", BenchmarkPass::bwd_first},
                                         {"step", BenchmarkPass::step}};
  add_choices(command, "--pass", benchmark.passes, "Only these passes; step is that of training configs", passes)
      ->option_text("fwd,bwd,bwd_first,step");
  const Choices<BenchmarkQuantity> quantities = {{"speed", BenchmarkQuantity::speed},
                                                 {"memory", BenchmarkQuantity::memory}};
  add_choices(command, "--quantity", benchmark.quantities, "Only this", quantities)->option_text("speed|memory");
  add_output(command, "--json", arguments->json, "Write the rows as JSON")->option_text("FILE");
  add_output(command, "--csv", arguments->csv, "Write the rows as CSV")->option_text("FILE");
  add_path(command, "--plot", arguments->plot, "Write a chart (SVG) for each suite, pass and quantity into this folder")
      ->option_text("DIR");
  set_manual(
      command,
      {.description = "Measures speed and memory of suites: names below configs/bench, YAML files, or operators, whose "
                      "large cases are then measured. The suite 'training' measures training steps. Ctrl-C ends after "
                      "the row that is being measured; the rows before are kept.",
       .examples = {{"heddle bench rms_norm --n 1024,4096", "two sizes of a suite"},
                    {"heddle bench linear_attention --quantity memory --json rows.json", "bytes, which need no GPU"},
                    {"heddle bench training --device cuda", "ms of a training step, tokens a second"}},
       .exit_codes = {{kInterrupted, "interrupted"}},
       .page = "docs/performance.md"});
  return [arguments, &registry] { return run(*arguments, registry); };
}

}  // namespace heddle::cli
