// A model as a checkpoint holds it, ready to be evaluated or to write text.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "trainers/logging/note.h"
#include "trainers/model/language_model.h"
#include "trainers/run/checkpoint.h"
#include "trainers/train_config.h"

namespace heddle {

struct LoadedModel {
  Checkpoint checkpoint;
  TrainConfig config;  // of the checkpoint, with the overrides, and with tokenizer_of_run() as data.tokenizer
  LanguageModel model;
};

// `run_or_checkpoint` is what find_checkpoint() takes, `overrides` are those of --set. With trainer.ema the weights are
// the average that the checkpoint holds; the override trainer.ema=null takes the others. Throws Error, or ConfigError
// for the overrides.
LoadedModel load_model(Context& context, const std::filesystem::path& run_or_checkpoint,
                       std::span<const std::string> overrides, const Note& note,
                       const Registry& registry = built_in_registry());

// Loads the weights that are evaluated and exported: the average where `config`, which an override may have changed,
// has trainer.ema; else those that are trained. Throws ConfigError when the checkpoint holds no average of this decay.
void load_weights(Context& context, const Checkpoint& checkpoint, const TrainConfig& config, ParameterSet& parameters);

}  // namespace heddle
