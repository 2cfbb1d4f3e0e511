// What a run starts from: the beginning, other weights, or a checkpoint.                              docs/training.md
#pragma once

#include <cstdint>
#include <string>

#include "trainers/logging/logger.h"
#include "trainers/logging/note.h"
#include "trainers/parallel/processes.h"
#include "trainers/run/run_folder.h"
#include "trainers/train_step.h"
#include "trainers/trainer.h"

namespace heddle {

// What a run is made of before it starts. All of it outlives the call of start_run().
struct RunParts {
  Context& context;
  const TrainConfig& config;
  const TrainOptions& options;
  const Registry& registry;
  Processes& processes;
  const Dataset& data;
  const std::string& config_text;  // the resolved config, YAML
  const RunFolder& folder;
  const Note& note;
};

// Where a run stands when it starts.
struct RunStart {
  int64_t step = 0;         // steps that were done before
  int64_t saved_step = -1;  // of the newest checkpoint in the folder
  TrainedOn trained_on;
  EvaluationHistory evaluations;
  StartEvent event;
};

// Whether no further step is to be taken: all are done, or the validation loss does not get better any more.
bool is_complete(const TrainerConfig& trainer, const EvaluationHistory& evaluations, int64_t step);

// Collective. Loads the checkpoint to continue from, or the weights to start from, if there are any, into `train_step`,
// and writes the config and the tokenizer into the folder. Nothing in the folder is changed before all of it is known
// to fit. Throws UsageError for what does not fit, and Error.
RunStart start_run(const RunParts& run, TrainStep& train_step);

}  // namespace heddle
