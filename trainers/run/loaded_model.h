// A model as a checkpoint holds it, ready to be evaluated or to write text.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "trainers/model/language_model.h"
#include "trainers/run/checkpoint.h"

namespace heddle {

struct LoadedModel {
  Checkpoint checkpoint;
  TrainConfig config;  // of the checkpoint, with the overrides
  LanguageModel model;
};

// `run_or_checkpoint` as find_checkpoint; `overrides` as of --set. Throws Error, or ConfigError for the overrides.
LoadedModel load_model(Context& context, const std::filesystem::path& run_or_checkpoint,
                       std::span<const std::string> overrides, const Note& note);

}  // namespace heddle
