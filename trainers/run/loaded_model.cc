#include "trainers/run/loaded_model.h"

#include <utility>

#include "trainers/run/checkpoint_config.h"
#include "trainers/run/run_tokenizer.h"

namespace heddle {

void load_weights(Context& context, const Checkpoint& checkpoint, const TrainConfig& config, ParameterSet& parameters) {
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
