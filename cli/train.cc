// heddle train CONFIG
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/signals.h"
#include "trainers/run/run_folder.h"
#include "trainers/trainer.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::string out;
  std::string resume = "auto";
  std::string init_from;
  DeviceOptions device;
};

// The config and the run folder that the arguments name. A run folder, or the config.yaml in it, means to go on with
// that run.
struct Subject {
  std::filesystem::path config, folder;
};
Subject subject_of(const Options& options) {
  Subject subject{options.config, options.out};
  if (std::filesystem::is_directory(subject.config)) subject.config /= "config.yaml";
  if (options.out.empty()) {
    subject.folder = run_folder_of(subject.config).value_or("runs" / std::filesystem::path(options.config).stem());
  }
  return subject;
}

int run(const Options& options, const Registry& registry) {
  Signals& signals = Signals::install();  // before the device, which starts threads
  const Subject subject = subject_of(options);
  const TrainConfig config = load_train_config(subject.config.string(), options.overrides, registry);
  const auto context = open_device(options.device);
  TrainOptions train_options;
  train_options.folder = subject.folder;
  train_options.resume = options.resume;
  train_options.init_from = options.init_from;
  train_options.program = "heddle " HEDDLE_VERSION;
  train_options.stop_requested = [&] { return signals.stop_requested(); };
  train_options.checkpoint_requested = [&] { return signals.take_checkpoint_request(); };
  const TrainResult result = train(*context, config, train_options, registry);
  if (!result.sample.empty()) fmt::print("{}\n", result.sample);
  return result.finished ? kDone : kInterrupted;
}

}  // namespace

Run add_train(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  command.add_option("config", options->config, "YAML file, see docs/config.md, or a run folder to go on with")
      ->required()
      ->option_text("CONFIG");
  command.add_option("--set", options->overrides, "Override a value of the config, e.g. trainer.steps=100; repeatable")
      ->allow_extra_args(false)
      ->option_text("KEY=VALUE");
  command.add_option("--out", options->out, "Run folder")->option_text("DIR [runs/NAME_OF_CONFIG]");
  command
      .add_option("--resume", options->resume,
                  "auto: go on from the newest whole checkpoint of the run folder, or start; none: start, the folder "
                  "must hold no checkpoints; PATH: go on from that checkpoint or run")
      ->option_text("auto|none|PATH [auto]");
  command.add_option("--init-from", options->init_from, "Start a new run from the weights of that run or checkpoint")
      ->option_text("RUN_OR_CHECKPOINT");
  add_device_options(command, options->device);
  command.footer(
      "Ctrl-C, SIGTERM and SIGHUP write a checkpoint after the current step and end with exit code 130; SIGUSR1 writes "
      "one and goes on.");
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
