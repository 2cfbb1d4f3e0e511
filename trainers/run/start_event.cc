#include "trainers/run/start_event.h"

#include <filesystem>
#include <string>

namespace heddle {
namespace {

// "toy_kjv" for configs/toy_kjv.yaml and for a run in runs/toy_kjv.
std::string name_of(const TrainConfig& config) {
  const std::filesystem::path file = config.node.location().file;
  return file.stem() == "config" && file.has_parent_path() ? file.parent_path().filename() : file.stem();
}

}  // namespace

StartEvent start_event(const Context& context, const TrainConfig& config) {
  const TrainerConfig& trainer = config.trainer;
  StartEvent event;
  event.config = name_of(config);
  event.steps = trainer.steps;
  event.dtype = trainer.dtype;
  event.batch_size = trainer.accumulate * trainer.batch_size;
  event.sequence_length = trainer.sequence_length;
  event.checkpoint_every = trainer.checkpoint_every;
  event.skip_nonfinite = trainer.skip_nonfinite;
  event.device = context.device();
  event.device_name = context.properties().name;
  event.threads = context.threads();
  return event;
}

}  // namespace heddle
