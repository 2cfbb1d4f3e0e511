// heddle eval RUN_OR_CHECKPOINT
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "core/runtime/unsigned_nan.h"
#include "trainers/evaluate.h"
#include "trainers/run/loaded_model.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string path;
  std::vector<std::string> overrides;
  DeviceOptions device;
};

int run(const Options& options, const Registry& registry) {
  const auto context = open_device(options.device);
  const LoadedModel loaded = load_model(*context, options.path, options.overrides, print_note, registry);
  const auto data = make_dataset(dataset_options(loaded.config));
  const Evaluation evaluation = evaluate(*context, loaded.model, *data);
  fmt::print("checkpoint        {}\n", loaded.checkpoint.path.string());
  fmt::print("tokens            {}\n", evaluation.targets);
  fmt::print("validation loss   {:.6f} nats per {}\n", unsigned_nan(evaluation.loss),
             data->is_text() ? "byte" : "token");
  fmt::print("perplexity        {:.4f}\n", unsigned_nan(std::exp(evaluation.loss)));
  if (data->is_text()) fmt::print("bits per byte     {:.6f}\n", unsigned_nan(evaluation.loss / std::log(2.0)));
  if (data->has_answers()) fmt::print("accuracy          {:.2f} %\n", unsigned_nan(100.0 * evaluation.accuracy));
  return kDone;
}

}  // namespace

Run add_eval(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  command.add_option("run", options->path, "Run folder (its newest whole checkpoint) or checkpoint")
      ->required()
      ->option_text("RUN_OR_CHECKPOINT");
  command.add_option("--set", options->overrides, "Override a value of its config, e.g. data.path=FILE; repeatable")
      ->allow_extra_args(false)
      ->option_text("KEY=VALUE");
  add_device_options(command, options->device);
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
