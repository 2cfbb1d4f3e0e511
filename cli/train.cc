// heddle train CONFIG
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/input_files.h"
#include "cli/launch.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "cli/signals.h"
#include "core/distributed/communicator.h"
#include "core/distributed/launch_variables.h"
#include "core/io/atomic_file.h"
#include "tools/verify_resume.h"
#include "trainers/dry_run.h"
#include "trainers/logging/console_logger.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/run_folder.h"
#include "trainers/run/run_tokenizer.h"
#include "trainers/trainer.h"

namespace heddle::cli {
namespace {

// The last events of the allocator that the snapshot shows when the memory ran out.
constexpr size_t kTracedEvents = 1 << 16;

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::string out;
  std::string resume = "auto";
  std::string init_from;
  bool dry_run = false;
  bool verify_resume = false;
  int64_t verified_steps = 20;
  DeviceOptions device;
  LaunchOptions launch;
};

// The config and the run folder that the arguments name. A run folder, or the config.yaml in it, means to go on with
// that run.
struct Subject {
  std::filesystem::path config, folder;
};
Subject subject_of(const TrainArguments& options) {
  Subject subject{options.config, options.out};
  std::error_code unreadable;  // whoever reads it says so
  if (std::filesystem::is_directory(subject.config, unreadable)) {
    subject.config /= "config.yaml";
    check_regular_file(subject.config);
  }
  if (options.out.empty()) {
    subject.folder = run_folder_of(subject.config).value_or("runs" / std::filesystem::path(options.config).stem());
  }
  return subject;
}

// The files that a run writes replace none of its data, and its trace replaces nothing that the run reads or writes.
void check_files(const TrainArguments& options, const TrainConfig& config, const Subject& subject) {
  NamedFiles data, inputs;
  add_data_files(data, config.data);
  const FileTable of_data(data);
  for (const auto& file : run_files(subject.folder)) {
    // The copy of the tokenizer may be data.tokenizer itself, and is never replaced.
    if (file != subject.folder / kTokenizerFile) of_data.check({"the run folder", file});
    inputs.push_back({"a file of the run folder", file});
  }
  if (!config.trainer.profile) return;
  const ConfigNode profile = config.node.section("trainer").section("profile");
  const std::string place = profile.location_of("trace").to_string() + ": trainer.profile.trace";
  add_training_files(inputs, subject.config.string(), config);
  for (const std::string& from : {options.init_from, options.resume}) {
    if (std::filesystem::exists(from)) add_run_files(inputs, from);
  }
  FileTable(inputs).check({place, config.trainer.profile->trace});
}

TrainConfig load(const TrainArguments& options, const Subject& subject, const Registry& registry) {
  check_is_apart_from_checkpoints("--out", subject.folder);
  TrainConfig config = load_train_config(subject.config.string(), options.overrides, registry);
  check_files(options, config, subject);
  return config;
}

std::string start_of(const DryRun& run, const TrainArguments& options) {
  if (run.step > 0) return fmt::format("from step {}", run.step);
  return options.init_from.empty() ? "from the beginning" : "from the weights of " + options.init_from;
}

// Of several processes that another launcher has started the first one shows it.
int show_dry_run(const TrainArguments& options, const TrainConfig& config, const std::filesystem::path& folder,
                 const Registry& registry) {
  const Launch launch = read_launch(device_of(options.device).type);
  const bool is_first = launch.rank == 0;
  const int processes =
      counted_processes(config, launch.kind == Launch::Kind::alone ? options.launch.gpus : launch.world_size);
  const DryRun run = dry_run(config,
                             {.processes = processes,
                              .folder = folder,
                              .resume = options.resume,
                              .init_from = options.init_from,
                              .note = is_first ? print_note : [](const std::string&) {}},
                             registry);
  if (!is_first) return kDone;
  const double steps = static_cast<double>(config.trainer.steps);
  const std::string in_full = std::to_string(run.parameters), in_short = format_parameters(run.parameters);
  fmt::print("parameters   {}{}\n", in_full, in_short == in_full ? "" : " (" + in_short + ")");
  fmt::print("memory       {} at the peak of a step{}\n", format_bytes(run.peak_bytes),
             processes > 1 ? fmt::format(", in each of {} processes", processes) : "");
  for (int i = 0; i < kMemoryCategories; ++i) {
    if (run.category_peaks[i] == 0) continue;
    fmt::print("  {:<11}{}\n", name(static_cast<MemoryCategory>(i)), format_bytes(run.category_peaks[i]));
  }
  fmt::print("operations   {:.3g} GFLOP a step, {:.3g} PFLOP in all: the matrix products\n",
             run.operations_per_step * 1e-9, run.operations_per_step * steps * 1e-15);
  fmt::print("steps        {} of {} tokens, {:.4g} M tokens in all\n", config.trainer.steps, run.tokens_per_step,
             static_cast<double>(run.tokens_per_step) * steps * 1e-6);
  if (run.files > 0) {
    fmt::print("data         {} file{}, {}\n", run.files, run.files == 1 ? "" : "s", format_bytes(run.file_bytes));
  }
  fmt::print("evaluation   {} sequences\n", run.evaluated);
  fmt::print("run folder   {}, {}\n", folder.string(), start_of(run, options));
  return kDone;
}

int verify(const TrainArguments& options, const TrainConfig& config, const Signals& signals, const Registry& registry) {
  if (const Launch launch = read_launch(device_of(options.device).type); launch.kind != Launch::Kind::alone) {
    throw UsageError(
        fmt::format("--verify-resume trains as one process, and the environment says that this process was started as "
                    "rank {} of {}",
                    launch.rank, launch.world_size));
  }
  VerifyResumeOptions verify_options;
  verify_options.steps = options.verified_steps;
  verify_options.open = [&] { return open_device(options.device, DeviceUse::compute); };
  verify_options.init_from = options.init_from;
  verify_options.stop_requested = [&] { return signals.stop_requested(); };
  const VerifyResumeResult result = verify_resume(config, verify_options, registry);
  if (!result.finished) return kInterrupted;
  if (result.difference) {
    fmt::print("DIFFERENT: {}\n", *result.difference);
    return kFailed;
  }
  fmt::print(
      "ok: {} steps, and {} steps, a stop and {} more, gave the same bits after every step: {} tensors of weights "
      "and optimizer, the state, the metrics\n",
      result.steps, result.stop, result.steps - result.stop, result.tensors);
  return kDone;
}

// Trains, as one process or as one of several.
int train_here(const TrainArguments& options, const TrainConfig& config, const std::filesystem::path& folder,
               Signals& signals, const Registry& registry) {
  DeviceOptions device = options.device;
  const Launch launch = launch_on(device);
  const auto context = open_device(device, DeviceUse::compute, {.trace_capacity = kTracedEvents});
  RendezvousOptions rendezvous = rendezvous_options(options.launch);
  rendezvous.stop_requested = [&] { return signals.stop_requested(); };
  std::unique_ptr<Communicator> communicator;
  if (launch.kind != Launch::Kind::alone) communicator = make_communicator(launch, *context, rendezvous);
  TrainOptions train_options;
  train_options.folder = folder;
  train_options.resume = options.resume;
  train_options.init_from = options.init_from;
  train_options.program = "heddle " HEDDLE_VERSION;
  train_options.communicator = communicator.get();
  train_options.stop_requested = [&] { return signals.stop_requested(); };
  train_options.checkpoint_requested = [&] { return signals.take_checkpoint_request(); };
  const TrainResult result = train(*context, config, train_options, registry);
  if (!result.sample.empty()) fmt::print("{}\n", result.sample);
  return result.finished || result.out_of_time ? kDone : kInterrupted;
}

int run(const TrainArguments& options, const Registry& registry) {
  if (!options.dry_run && starts_processes(options.launch)) {
    load(options, subject_of(options), registry);  // what is wrong is told once
    return start_processes(options.launch);
  }
  Signals& signals = Signals::install(
      "stopping after this step; a second signal stops at once, without a checkpoint");  // before the device, which
                                                                                         // starts threads
  const Subject subject = subject_of(options);
  const TrainConfig config = load(options, subject, registry);
  if (options.dry_run) {
    return show_dry_run(options, config, subject.folder, registry);
  }
  if (options.verify_resume) return verify(options, config, signals, registry);
  try {
    return train_here(options, config, subject.folder, signals, registry);
  } catch (const RendezvousStopped&) {
    return kInterrupted;
  }
}

}  // namespace

Run add_train(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<TrainArguments>();
  find_shared_configs(
      command.add_option("config", options->config, "YAML file, see docs/config.md, or a run folder to go on with"))
      ->required()
      ->option_text("CONFIG");
  add_overrides(command, options->overrides, "trainer.steps=100");
  CLI::Option* const out =
      add_path(command, "--out", options->out, "Run folder")->option_text("DIR [runs/NAME_OF_CONFIG]");
  CLI::Option* const resume =
      refuse_empty(
          command.add_option(
              "--resume", options->resume,
              "auto: go on from the newest whole checkpoint of the run folder, or start; none: start, the folder "
              "must hold no checkpoints; PATH: go on from that checkpoint or run"),
          "auto, none or a path")
          ->option_text("auto|none|PATH [auto]");
  add_path(command, "--init-from", options->init_from,
           "Start a new run from the weights of that run or checkpoint, or of a folder that heddle export wrote")
      ->option_text("RUN_OR_CHECKPOINT_OR_DIR");
  CLI::Option* const dry_run =
      command.add_flag("--dry-run", options->dry_run,
                       "Train nothing and write nothing: print parameters, memory, operations and what would be read");
  CLI::Option* const verify =
      command
          .add_flag("--verify-resume", options->verify_resume,
                    "Train some steps twice in a temporary folder, without a stop and with one, and compare every bit; "
                    "exit code 1 when one differs")
          ->excludes(out)
          ->excludes(resume)
          ->excludes(dry_run);
  add_number(command, "--steps", options->verified_steps,
             "How many steps --verify-resume trains, at most trainer.steps", Range::at_least(2))
      ->needs(verify)
      ->option_text("N [20]");
  add_device_options(command, options->device);
  add_launch_options(command, options->launch)->excludes(verify)->excludes("--device");
  set_manual(
      command,
      {.description =
           "Trains the model of a config, or goes on with a run: the same command continues from the newest "
           "checkpoint, bit "
           "for bit. Progress goes to stderr, the text at the end, if the config asks for one, to stdout.\nCtrl-C, "
           "SIGTERM and SIGHUP write a checkpoint after the current step and end with exit code 130; SIGUSR1 writes "
           "one and goes on.\nSeveral processes train one model: those that --gpus starts on this host, or those that "
           "torchrun, srun or mpirun started.",
       .examples = {{"heddle train configs/toy_kjv.yaml", "trains in the run folder runs/toy_kjv, or goes on there"},
                    {"heddle train runs/toy_kjv", "goes on with that run"},
                    {"heddle train configs/toy_kjv.yaml --set optimizer.lr=1.0e-3 --out runs/slow", "changes a value"},
                    {"heddle train configs/toy_kjv.yaml --init-from runs/toy_kjv --out runs/again",
                     "starts from weights"},
                    {"heddle train configs/toy_kjv.yaml --gpus 8", "trains on 8 GPUs of this host"},
                    {"heddle train configs/toy_kjv.yaml --dry-run", "says what it would take, and trains nothing"},
                    {"heddle train configs/toy_kjv.yaml --verify-resume",
                     "proves that a run of the config goes on bit for bit"}},
       .exit_codes = {{kInterrupted, "interrupted, after writing a checkpoint"}},
       .page = "docs/training.md, docs/launching.md, docs/config.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
