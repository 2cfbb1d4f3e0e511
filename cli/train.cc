// heddle train CONFIG
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "cli/command.h"
#include "cli/device.h"
#include "trainers/trainer.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::string out;
  std::string resume = "auto";
  DeviceOptions device;
};

// The signal handler sets it; it can reach nothing else.
volatile std::sig_atomic_t stop_signal = 0;

extern "C" void request_stop(int signal) {
  stop_signal = signal;
  constexpr char text[] = "\nstopping after this step; a second signal stops at once, without a checkpoint\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, sizeof(text) - 1);
}

// The first SIGINT or SIGTERM asks the loop to stop, the second ends the process.
void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = request_stop;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int run(const Options& options, const Registry& registry) {
  const TrainConfig config = load_train_config(options.config, options.overrides, registry);
  const auto context = open_device(options.device);
  TrainOptions train_options;
  train_options.folder =
      options.out.empty() ? "runs" / std::filesystem::path(options.config).stem() : std::filesystem::path(options.out);
  train_options.resume = options.resume;
  train_options.program = "heddle " HEDDLE_VERSION;
  train_options.stop_requested = [] { return stop_signal != 0; };
  catch_stop_signals();
  const TrainResult result = train(*context, config, train_options, registry);
  if (!result.finished) return kInterrupted;
  if (!result.sample.empty()) fmt::print("{}\n", result.sample);
  return kDone;
}

}  // namespace

Run add_train(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  command.add_option("config", options->config, "YAML file, see docs/config.md")->required()->option_text("CONFIG");
  command.add_option("--set", options->overrides, "Override a value of the config, e.g. trainer.steps=100; repeatable")
      ->allow_extra_args(false)
      ->option_text("KEY=VALUE");
  command.add_option("--out", options->out, "Run folder")->option_text("DIR [runs/NAME_OF_CONFIG]");
  command
      .add_option("--resume", options->resume,
                  "auto: go on from the newest whole checkpoint of the run folder, or start; none: start, the folder "
                  "must hold no checkpoints; PATH: go on from that checkpoint or run")
      ->option_text("auto|none|PATH [auto]");
  add_device_options(command, options->device);
  command.footer("Ctrl-C writes a checkpoint after the current step and ends with exit code 130.");
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
