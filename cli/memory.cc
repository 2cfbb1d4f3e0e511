// heddle memory CONFIG
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/input_files.h"
#include "cli/launch.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tools/memory_tables.h"
#include "tools/memory_timeline.h"
#include "tools/training_memory.h"

namespace heddle::cli {
namespace {

struct MemoryArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::vector<int64_t> batch_sizes, lengths;
  size_t fit_bytes = 0;
  int64_t processes = 0;  // 0: as many as the config asks for
  std::string json, snapshot, trace, plot;
  DeviceOptions device;
};

// A length is refused where it would be as trainer.sequence_length.
void check_lengths(const MemoryArguments& options, const Registry& registry) {
  for (const int64_t length : options.lengths) {
    std::vector<std::string> overrides = options.overrides;
    overrides.push_back(fmt::format("trainer.sequence_length={}", length));
    try {
      load_train_config(options.config, overrides, registry);
    } catch (const ConfigError& error) {
      throw UsageError(fmt::format("--length {}: {}", length, error.message()));
    }
  }
}

// The file is not blamed for a batch or a number of processes that an option gives.
void check_processes_of_options(const MemoryArguments& options, const TrainConfig& config, int processes) {
  const std::string expected = fmt::format("expected a multiple of {}, the number of processes", processes);
  for (const int64_t batch : options.batch_sizes) {
    if (batch % processes != 0) throw UsageError(fmt::format("--batch: found {}, {}", batch, expected));
  }
  const int64_t own = config.trainer.batch_size;
  if (options.processes == 0 || own % processes == 0) return;
  throw UsageError(fmt::format("--gpus {}: trainer.batch_size: found {}, {}", processes, own, expected));
}

int run(const MemoryArguments& options, const Registry& registry) {
  const TrainConfig config = load_train_config(options.config, options.overrides, registry);
  check_lengths(options, registry);
  NamedFiles inputs;
  add_training_files(inputs, options.config, config);
  check_output_files({{"--json", options.json},
                      {"--snapshot", options.snapshot},
                      {"--trace", options.trace},
                      {"--plot", options.plot}},
                     inputs);
  const Device device = device_of(options.device, DeviceUse::count);
  const CountedProcesses processes{counted_processes(config, options.processes)};
  if (processes.count > 1 && device.type != DeviceType::meta) {
    throw UsageError(
        fmt::format("one of {} processes is counted on meta, found --device {}", processes.count, to_string(device)));
  }
  check_processes_of_options(options, config, processes.count);
  TrainingMemory memory = measure_training(device, config, options.device.threads, processes);
  if (!options.batch_sizes.empty() || !options.lengths.empty()) {
    memory.grid = peak_grid(config, options.batch_sizes, options.lengths, processes);
  }
  if (options.fit_bytes > 0) memory.fit = find_fit(config, options.fit_bytes, processes);
  TableStream({options.json, options.snapshot, options.trace, options.plot}).print(to_text(memory));
  if (!options.json.empty()) write_file(options.json, to_json(memory));
  if (!options.snapshot.empty()) write_file(options.snapshot, memory.snapshot);
  if (!options.trace.empty()) write_file(options.trace, timeline_trace(memory.report));
  if (!options.plot.empty()) write_file(options.plot, timeline_svg(memory.report, options.config));
  return kDone;
}

}  // namespace

Run add_memory(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<MemoryArguments>();
  find_configs_and_runs(command.add_option("config", options->config, "YAML file, see docs/config.md, or a run folder"))
      ->required()
      ->option_text("CONFIG");
  add_overrides(command, options->overrides, "model.dim=512");
  add_numbers(command, "--batch", options->batch_sizes, "Also the peaks with these batch sizes", Range::count())
      ->option_text("N,...");
  add_numbers(command, "--length", options->lengths, "Also the peaks with these sequence lengths", Range::count())
      ->option_text("N,...");
  add_bytes(command, "--fit", options->fit_bytes,
            "Search the largest batch size and sequence length that fit into this much memory, as 80GiB")
      ->option_text("SIZE");
  add_number(command, "--gpus", options->processes,
             "Count for one of as many processes that train together, each on a GPU", Range::between(1, 65536))
      ->option_text("N [trainer.parallel.data, or 1]");
  add_output(command, "--json", options->json, "Write everything as JSON")->option_text("FILE");
  add_output(command, "--snapshot", options->snapshot, "Write a snapshot for PyTorch's memory viewer")
      ->option_text("FILE");
  add_output(command, "--trace", options->trace,
             "Write layers and bytes over time for chrome://tracing and ui.perfetto.dev")
      ->option_text("FILE");
  add_output(command, "--plot", options->plot, "Write a chart (SVG) of the bytes by category over time")
      ->option_text("FILE");
  add_device_options(command, options->device, DeviceUse::count);
  set_manual(
      command,
      {.description =
           "Says where the bytes of a training step go, by category and by layer, and what fits into a memory. Two "
           "steps are "
           "taken on the device, without data: on meta, which is the default, at once and without memory. The grid and "
           "what fits are always counted on meta.",
       .examples = {{"heddle memory configs/toy_kjv.yaml", "the peak of a step, and what it is made of"},
                    {"heddle memory configs/bench/train_165m.yaml --fit 80GiB", "the largest batch"},
                    {"heddle memory configs/bench/train_165m.yaml --gpus 8", "what each of 8 GPUs needs"},
                    {"heddle memory configs/toy_kjv.yaml --batch 8,16,32 --length 256,1024", "a grid"}},
       .exit_codes = {},
       .page = "docs/memory.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
