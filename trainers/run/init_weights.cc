#include "trainers/run/init_weights.h"

#include <fmt/format.h>

#include "trainers/run/model_folder.h"

namespace heddle {

std::string init_weights(Context& context, const std::filesystem::path& path, const ModelConfig& model,
                         ParameterSet& parameters, const Note& note) {
  if (is_model_folder(path)) {
    read_weights(context, path, model, parameters);
    return fmt::format("those of {}", path.string());
  }
  const Checkpoint checkpoint = find_checkpoint(path, note);
  load_evaluated_parameters(context, checkpoint, parameters);
  return fmt::format("{} {}", has_average(checkpoint) ? "the average of" : "those of", checkpoint.path.string());
}

}  // namespace heddle
