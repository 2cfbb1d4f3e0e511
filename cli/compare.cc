// heddle compare CONFIG...
#include <fmt/format.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "cli/signals.h"
#include "core/io/atomic_file.h"
#include "tools/compare_report.h"

namespace heddle::cli {
namespace {

struct CompareArguments {
  std::vector<std::string> configs;
  CompareOptions compare;
  std::string json, plot;
  DeviceOptions device;
};

// What is no regular file (/dev/stdout, a pipe) is written once, at the end.
void write_files(const CompareArguments& options, const Comparison& comparison, bool at_end) {
  const auto write = [&](const std::string& path, const auto& contents) {
    if (!path.empty() && is_written_through(path) == at_end) write_file(path, contents(comparison));
  };
  write(options.json, [](const Comparison& all) { return to_json(all); });
  write(options.plot, [](const Comparison& all) { return to_svg(all); });
}

int run(const CompareArguments& options, const Registry& registry) {
  // Before the device, which starts threads.
  const Signals& signals =
      Signals::install("stopping, without the model that is being measured; a second signal stops at once");
  CompareOptions compare_options = options.compare;
  compare_options.stop_requested = [&] { return signals.stop_requested(); };
  const std::vector<CompareSubject> subjects = load_subjects(options.configs, compare_options, registry);
  NamedFiles inputs;
  for (size_t i = 0; i < subjects.size(); ++i) add_training_files(inputs, options.configs[i], subjects[i].config);
  check_output_files({{"--json", options.json}, {"--plot", options.plot}}, inputs);
  const std::unique_ptr<Context> context = open_device(options.device);
  Comparison comparison;
  const auto report = [&](const Comparison& measured) {
    comparison = measured;
    write_files(options, comparison, false);
  };
  const auto show = [&] {
    if (comparison.models.empty()) return;
    TableStream({options.json, options.plot}).print(to_text(comparison));
    write_files(options, comparison, true);
  };
  bool finished = false;
  try {
    finished = compare(*context, subjects, compare_options, report, registry);
  } catch (const std::exception&) {
    show();  // the models before the one that failed
    throw;
  }
  show();
  return finished ? kDone : kInterrupted;
}

}  // namespace

Run add_compare(CLI::App& command, const Registry& registry) {
  const auto options = std::make_shared<CompareArguments>();
  CompareOptions& compare = options->compare;
  find_configs_and_runs(
      command.add_option("configs", options->configs,
                         "YAML files, see docs/config.md, or run folders, that differ in their models"))
      ->required()
      ->option_text("CONFIG...");
  add_overrides(command, compare.overrides, "trainer.batch_size=8");
  add_number(command, "--steps", compare.steps, "Steps of a training instead of the configs'", Range::at_least(1))
      ->option_text("N");
  add_number(command, "--seeds", compare.seeds,
             "Trainings of each model, with the seed of the configs and the next ones", Range::at_least(1))
      ->option_text("N [1]");
  add_number(command, "--recall-steps", compare.recall_steps,
             "Steps of a training on associative recall (mqar); 0: it is left out", Range::at_least(0))
      ->option_text("N [2000]");
  add_numbers(command, "--lengths", compare.lengths, "Lengths of sequences at which training is timed", Range::count())
      ->option_text("N,... [256,1024,4096]");
  add_numbers(command, "--context", compare.contexts, "Tokens that are read before generation is timed", Range::count())
      ->option_text("N,... [1024,32768]");
  add_output(command, "--json", options->json, "Write all numbers as JSON")->option_text("FILE");
  add_output(command, "--plot", options->plot, "Write a chart (SVG) of the speeds by length")->option_text("FILE");
  add_device_options(command, options->device);
  set_manual(
      command,
      {.description =
           "Trains the model of each config on the same tokens and shows loss, associative recall, speed and memory in "
           "one "
           "table. All configs must have the same data, seed, steps and batches. Ctrl-C ends after the step under way; "
           "the models that were measured are kept.",
       .examples = {{"heddle compare configs/models/transformer_toy.yaml configs/models/linear_toy.yaml --steps 100",
                     "two models"},
                    {"heddle compare configs/models/lightning_toy.yaml --seeds 3 --recall-steps 0 --json table.json",
                     "one, three times"}},
       .exit_codes = {{kInterrupted, "interrupted"}},
       .page = "docs/models.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
