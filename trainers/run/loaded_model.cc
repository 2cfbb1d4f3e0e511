#include "trainers/run/loaded_model.h"

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "core/config/config_load.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/run_tokenizer.h"

namespace heddle {
namespace {

// The average of a checkpoint was kept with one decay. Throws ConfigError when `config` has another.
void check_average(const Checkpoint& checkpoint, const TrainConfig& config) {
  const ConfigNode trained = parse_config(checkpoint.state.config, "config of " + checkpoint.path.string());
  const std::optional<double> kept = trained.section("trainer").find<double>("ema"), wanted = config.trainer.ema;
  if (!wanted || wanted == kept) return;
  const std::string expected = kept ? fmt::format("{}, the decay of the average in {}", *kept, checkpoint.path.string())
                                    : fmt::format("none: {} holds no average of the weights", checkpoint.path.string());
  config.node.section("trainer").fail("ema", fmt::format("found {}, expected {}", *wanted, expected));
}

}  // namespace

void load_weights(Context& context, const Checkpoint& checkpoint, const TrainConfig& config, ParameterSet& parameters) {
  check_average(checkpoint, config);
  if (config.trainer.ema) {
    load_evaluated_parameters(context, checkpoint, parameters);
  } else {
    load_parameters(context, checkpoint, parameters);
  }
}

LoadedModel load_model(Context& context, const std::filesystem::path& run_or_checkpoint,
                       std::span<const std::string> overrides, const Note& note, const Registry& registry) {
  Checkpoint checkpoint = find_checkpoint(run_or_checkpoint, note);
  TrainConfig config = read_checkpoint_config(checkpoint, overrides, registry);
  config.data.tokenizer = tokenizer_of_run(config, checkpoint, registry);
  LanguageModel model(config.model);
  model.parameters().materialize(context, config.trainer.dtype, config.seed);
  load_weights(context, checkpoint, config, model.parameters());
  return {std::move(checkpoint), std::move(config), std::move(model)};
}

}  // namespace heddle
