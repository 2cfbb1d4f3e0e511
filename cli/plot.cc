// heddle plot RUN...
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "core/io/atomic_file.h"
#include "core/io/file_identity.h"
#include "core/runtime/error.h"
#include "tools/run_curves.h"

namespace heddle::cli {
namespace {

struct PlotArguments {
  std::vector<std::string> runs;
  std::string out;
  CurveOptions curves;
};

int run(const PlotArguments& options) {
  const std::string out = options.out.empty() ? options.curves.metrics.front() + ".svg" : options.out;
  NamedFiles inputs;
  for (const std::string& run : options.runs) add_run_files(inputs, run);
  check_output_files({{"--out", out}}, inputs);
  std::vector<RunMetrics> runs;
  std::set<FileIdentity> files;
  for (const std::string& folder : options.runs) {
    runs.push_back(read_metrics(folder));
    if (!files.insert(file_identity(runs.back().file)).second) throw UsageError(folder + " is given twice");
  }
  const std::string svg = curves_svg(runs, options.curves);
  write_file(out, svg);
  TableStream({out}).print(fmt::format("{}written to {}\n", curves_text(runs, options.curves), out));
  return kDone;
}

}  // namespace

Run add_plot(CLI::App& command, const Registry&) {
  const auto options = std::make_shared<PlotArguments>();
  CurveOptions& curves = options->curves;
  command.add_option("runs", options->runs, "Run folders, whose metrics.csv is read")
      ->required()
      ->option_text("RUN...");
  add_output(command, "--out", options->out, "File of the chart (SVG)")->option_text("FILE [METRIC.svg]");
  command
      .add_option_function<std::string>(
          "--metric", [&curves](const std::string& text) { curves.metrics = parts_given_once("--metric", text); },
          "Columns of metrics.csv to draw")
      ->option_text("NAME,... [loss,validation_loss]");
  add_choice<std::string>(command, "--x", curves.x, "The column to draw over", {{"step", "step"}, {"tokens", "tokens"}})
      ->option_text("step|tokens [step]");
  add_number(command, "--smooth", curves.smooth,
             "Rows in the mean that is drawn over the rows; 1: no mean; 0: a fiftieth of the rows", Range::at_least(0))
      ->option_text("N [0]");
  command.add_flag("--log", curves.is_logarithmic, "A logarithmic axis for the metrics");
  set_manual(
      command,
      {.description = "Draws curves of one or several runs as a chart, and prints their last and lowest values. "
                      "Several runs in one "
                      "chart are told apart by color, their metrics by dashes.",
       .examples = {{"heddle plot runs/toy_kjv", "draws the losses of a run into loss.svg"},
                    {"heddle plot runs/a runs/b --metric validation_loss --log --out both.svg", "compares two runs"}},
       .exit_codes = {},
       .page = "docs/watching.md"});
  return [options] { return run(*options); };
}

}  // namespace heddle::cli
