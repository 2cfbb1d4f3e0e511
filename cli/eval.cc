// heddle eval RUN_OR_CHECKPOINT
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/standard_streams.h"
#include "core/config/config_error.h"
#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "trainers/evaluate.h"
#include "trainers/non_finite.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/loaded_model.h"

namespace heddle::cli {
namespace {

struct EvalArguments {
  std::string path;
  std::optional<std::string> data;
  std::vector<std::string> overrides;
  DeviceOptions device;
};

// Which values the overrides set, however they are written: data.path=x or data={path: x}.
struct Asked {
  bool batches = false, path = false, validation_path = false, fraction = false;
};
Asked asked_by(const std::vector<std::string>& overrides) {
  const ConfigNode set = parse_config("{}", "overrides", overrides);
  const ConfigNode data = set.section("data");
  return {.batches = set.section("trainer").has("eval_batches"),
          .path = data.has("path"),
          .validation_path = data.has("validation_path"),
          .fraction = data.has("validation_fraction")};
}

// --data means all of a file.
void check_data_is_asked_for_once(const EvalArguments& options, const Asked& asked) {
  if (!options.data) return;
  for (const auto& [is_set, key] : {std::pair{asked.path, "path"}, std::pair{asked.validation_path, "validation_path"},
                                    std::pair{asked.fraction, "validation_fraction"}}) {
    if (is_set) throw UsageError(fmt::format("--data: found --set data.{} beside it, expected one of them", key));
  }
}

// The config of a run holds a validation_fraction, which files for validation replace.
std::vector<std::string> with_validation_files_alone(std::vector<std::string> overrides, const Asked& asked) {
  if (asked.validation_path) overrides.insert(overrides.begin(), "data.validation_fraction=null");
  return overrides;
}

// The data of an evaluation, and what a user calls them.
struct Evaluated {
  std::unique_ptr<Dataset> data;
  std::string name;
};

// All of the files that the user names, or as many batches as he asks for.
Evaluated whole_files(const TrainConfig& config, bool asks_for_batches) {
  DatasetOptions options = dataset_options(config);
  options.evaluation_only = true;
  if (!asks_for_batches) options.eval_sequences.reset();
  const std::string path = config.data.validation_path.value_or(config.data.path);
  return {make_dataset(options), asks_for_batches ? path : path + ", all of it"};
}

Evaluated files_of_option(TrainConfig config, bool asks_for_batches, const std::string& path) {
  const DataType type = config.data.type;
  if (type != DataType::text && type != DataType::tokens) {
    throw UsageError("--data: this model was trained on data that are generated, and reads no files");
  }
  config.data.validation_path = path;
  try {
    return whole_files(config, asks_for_batches);
  } catch (const ConfigError& error) {
    throw UsageError(fmt::format("--data {}: {}", path, error.message()));
  }
}

std::string name_of(const DataConfig& data) {
  if (data.type == DataType::mqar) return "mqar, generated";
  if (data.type == DataType::copy) return "copy, generated";
  if (data.validation_path) return *data.validation_path;
  if (!data.sources.empty()) {
    return fmt::format("{} sources, the last {:g} % of each", data.sources.size(), 100.0 * data.validation_fraction);
  }
  return fmt::format("{}, the last {:g} %", data.path, 100.0 * data.validation_fraction);
}

// Files that the user names are evaluated as a whole, unless he asks for a share or the model was trained on them; else
// the data are those of the evaluations in training.
Evaluated evaluated_data(const EvalArguments& options, const Asked& asked, const TrainConfig& config,
                         const TrainConfig& trained, const Checkpoint& checkpoint) {
  if (options.data) return files_of_option(config, asked.batches, *options.data);
  if (config.data.validation_path != trained.data.validation_path) return whole_files(config, asked.batches);
  const bool has_other_files = config.data.path != trained.data.path;
  if (has_other_files && !asked.fraction) {
    TrainConfig path_alone = config;
    path_alone.data.validation_path.reset();
    Evaluated whole = whole_files(path_alone, asked.batches);
    if (checkpoint.state.data != whole.data->identity()) return whole;
  }
  Evaluated same = {make_dataset(dataset_options(config)), name_of(config.data)};
  if (has_other_files) return same;
  const std::string difference = data_difference(same.data->identity(), checkpoint);
  if (!difference.empty()) print_note(difference);
  return same;
}

// Throws Error for a loss that is not finite, and says where that may come from.
void check_finite(Context& context, const LoadedModel& loaded, double loss) {
  if (std::isfinite(loss)) return;
  for (const Parameter& parameter : loaded.model.parameters().all()) {
    const auto value = first_non_finite(context, parameter.value);
    if (!value) continue;
    fail("the validation loss is {}, since parameter {} of {} is not finite ({})", unsigned_nan(loss), parameter.name,
         loaded.checkpoint.path.string(), unsigned_nan(*value));
  }
  fail("the validation loss is {}, though all parameters of {} are finite: numbers overflow on the way to it",
       unsigned_nan(loss), loaded.checkpoint.path.string());
}

int run(const EvalArguments& options, const Registry& registry) {
  const Asked asked = asked_by(options.overrides);
  check_data_is_asked_for_once(options, asked);
  check_is_no_export(options.path);
  const auto context = open_device(options.device);
  const LoadedModel loaded =
      load_model(*context, options.path, with_validation_files_alone(options.overrides, asked), print_note, registry);
  const TrainConfig trained = read_checkpoint_config(loaded.checkpoint, {}, registry);
  const Evaluated evaluated = evaluated_data(options, asked, loaded.config, trained, loaded.checkpoint);
  const Dataset& data = *evaluated.data;
  const Evaluation evaluation = evaluate(*context, loaded.model, data);
  fmt::print("checkpoint        {}\n", loaded.checkpoint.path.string());
  fmt::print("data              {}\n", evaluated.name);
  fmt::print("tokens            {}\n", evaluation.targets);
  fmt::print("validation loss   {:.6f} nats per {}\n", unsigned_nan(evaluation.loss),
             data.is_text() ? "byte" : "token");
  fmt::print("perplexity        {:.4f}\n", unsigned_nan(std::exp(evaluation.loss)));
  if (evaluation.bytes > 0) {
    if (!data.is_text()) fmt::print("bytes             {}\n", evaluation.bytes);
    fmt::print("bits per byte     {:.6f}\n", unsigned_nan(evaluation.bits_per_byte()));
  }
  if (data.has_answers()) fmt::print("accuracy          {:.2f} %\n", unsigned_nan(100.0 * evaluation.accuracy));
  finish_stdout();  // before the error
  check_finite(*context, loaded, evaluation.loss);
  return kDone;
}

}  // namespace

Run add_eval(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<EvalArguments>();
  command.add_option("run", options->path, "Run folder (its newest whole checkpoint) or checkpoint")
      ->required()
      ->option_text("RUN_OR_CHECKPOINT");
  add_path(command, "--data", options->data, "Evaluate all of this file, or of the files that this glob matches")
      ->option_text("FILE");
  add_overrides(command, options->overrides, "trainer.eval_batches=all");
  add_device_options(command, options->device);
  set_manual(
      command,
      {.description =
           "The loss of a trained model on the validation data of its run, as many as an evaluation in training reads, "
           "or on "
           "all of a file. Beside it perplexity and, of text, bits per byte; of tasks with answers the accuracy.",
       .examples = {{"heddle eval runs/toy_kjv", "the newest whole checkpoint"},
                    {"heddle eval runs/toy_kjv --set trainer.eval_batches=all", "all validation data"},
                    {"heddle eval runs/toy_kjv/checkpoints/best --data book.txt", "all of a file"}},
       .exit_codes = {{kFailed, "the loss is not finite, or failure at run time"}},
       .page = "docs/cli.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
