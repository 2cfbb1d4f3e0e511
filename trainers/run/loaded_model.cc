#include "trainers/run/loaded_model.h"

#include "core/config/config_load.h"

namespace heddle {

LoadedModel load_model(Context& context, const std::filesystem::path& run_or_checkpoint,
                       std::span<const std::string> overrides, const Note& note) {
  Checkpoint checkpoint = find_checkpoint(run_or_checkpoint, note);
  const std::string name = "config of " + checkpoint.path.string();
  TrainConfig config = read_train_config(parse_config(checkpoint.state.config, name, overrides));
  LanguageModel model(config.model);
  model.parameters().materialize(context, config.trainer.dtype, config.seed);
  load_parameters(context, checkpoint, model.parameters());
  return {std::move(checkpoint), std::move(config), std::move(model)};
}

}  // namespace heddle
