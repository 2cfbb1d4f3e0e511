// Models side by side, trained on the same tokens in the same order: what `heddle compare` measures.   docs/models.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/runtime/context.h"
#include "trainers/train_config.h"

namespace heddle {

struct CompareOptions {
  std::vector<std::string> overrides;                // of all configs, as --set gives them
  int64_t steps = 0;                                 // of a training; 0: those of the configs
  int64_t seeds = 1;                                 // trainings of each model: seed of the configs, the next one, ..
  int64_t recall_steps = 2000;                       // of a training on the recall task; 0: it is left out
  std::vector<int64_t> lengths = {256, 1024, 4096};  // of sequences, at which training is timed
  std::vector<int64_t> contexts = {1024, 32768};     // tokens that are read before generation is timed
  std::FILE* log = stderr;                           // where progress is told; nullptr: nowhere
  // Is asked between steps, measurements and parts of a context.
  std::function<bool()> stop_requested = [] { return false; };
};

// A model that is compared.
struct CompareSubject {
  // Of the config's file, without folder and ending, or of the run folder; the whole path where these are not unique.
  std::string name;
  TrainConfig config;
  std::optional<TrainConfig> recall;  // the same model on the recall task
};

// The overrides that make a training on the recall task of any config: multi-query associative recall.
std::vector<std::string> recall_overrides(int64_t steps);

// Reads the configs. Throws UsageError for a config that is given twice, and ConfigError for what load_train_config()
// refuses and for configs whose trainings would not see the same tokens in the same order; it names the config and key.
std::vector<CompareSubject> load_subjects(std::span<const std::string> paths, const CompareOptions& options,
                                          const Registry& registry = built_in_registry());

struct TrainingSpeed {
  int64_t length = 0;      // of a sequence
  int64_t batch_size = 0;  // so that a step has as many tokens as a forward pass of the config, or one sequence
  double tokens_per_second = 0.0;
};
struct GenerationSpeed {
  int64_t context = 0;  // tokens that were read before
  double tokens_per_second = 0.0;
  size_t state_bytes = 0;  // what the state of all mixers holds after the context
};
struct ComparedModel {
  std::string name;
  int64_t parameters = 0;
  std::vector<double> losses;   // validation loss after the last step, by seed: nats per token
  std::vector<double> recalls;  // share of right answers after the last step on the recall task, by seed
  std::vector<TrainingSpeed> training;
  std::vector<GenerationSpeed> generation;
  size_t peak_bytes = 0;  // allocated at the peak of a step of the config: exact, counted on device meta
};
struct Comparison {
  Device device;
  int threads = 1;  // on a CPU
  bool is_text = false;
  uint64_t seed = 0;        // of the first training
  int64_t seeds = 0;        // trainings of each model
  int64_t steps = 0;        // of a training
  int64_t step_tokens = 0;  // of a step
  int64_t recall_steps = 0;
  std::vector<ComparedModel> models;
};

// Measures one model after the other and calls `report` after each. Losses and recalls are those of `heddle train` with
// the same config and seed, bit for bit. Returns false when it was stopped; the model that was being measured is then
// left out. Nothing is kept of the trainings: their run folders are temporary. Throws Error, naming the model.
bool compare(Context& context, std::span<const CompareSubject> subjects, const CompareOptions& options,
             const std::function<void(const Comparison&)>& report, const Registry& registry = built_in_registry());

}  // namespace heddle
