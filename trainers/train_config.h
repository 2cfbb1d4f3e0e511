// The configuration of a training run: what the YAML of `heddle train` says.                          docs/config.md
//
// A config is read once, into plain structs that hold every default, and is constant from then on. Reading checks
// types, ranges, unknown keys and the rules between sections; every error is a ConfigError that names file, line and
// column.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/config/config_node.h"
#include "core/tensor/dtype.h"
#include "trainers/data/data_config.h"
#include "trainers/logging/logging_config.h"
#include "trainers/model/model_config.h"
#include "trainers/optimizer_config.h"
#include "trainers/parallel/parallel_config.h"
#include "trainers/profile/profile_config.h"

namespace heddle {

enum class ScheduleType { cosine, linear, wsd, constant };

// How wsd falls with p from 0 to 1: `linear` 1 - p, `sqrt` 1 - p^0.5.
enum class DecayShape { linear, sqrt };

// Linear warm-up to optimizer.lr, then down to min_lr at the last step.
struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  std::int64_t warmup_steps = 0;
  double min_lr = 0;                            // not with constant
  std::optional<std::int64_t> decay_steps;      // wsd: the last steps, in which the rate falls; none: decay_fraction
  double decay_fraction = 0.2;                  // wsd: the share of all steps in which the rate falls
  DecayShape decay_shape = DecayShape::linear;  // wsd
};

// Text generated at the end of training, and on the way.
struct SampleConfig {
  std::string prompt = "\n";  // with data.pack it may be empty, which is the default there: a document is begun
  std::int64_t tokens = 200;
  double temperature = 0.8;  // 0: always the likeliest token
  std::int64_t every = 0;    // steps between texts during training; 0: only at the end
};

struct TrainerConfig {
  std::int64_t steps = 0;        // optimizer steps
  std::int64_t batch_size = 16;  // sequences of one forward pass, of all processes together
  std::int64_t sequence_length = 256;
  std::int64_t accumulate = 1;             // forward passes of one optimizer step
  DType dtype = DType::float32;            // of activations; parameters keep a float32 master
  std::optional<double> loss_scale = 1.0;  // of the loss in backward; when it is read, larger in float16. None: dynamic
  bool cuda_graph = true;                  // replay the step as a CUDA graph, where there is a GPU
  bool search_gemm = false;                // on a GPU, time the algorithms of matrix products and take the fastest
  std::int64_t eval_every = 200;           // steps; 0: only after the last
  std::optional<std::int64_t> eval_batches = 20;  // of the size of a step, in one evaluation; none: all
  std::int64_t checkpoint_every = 200;            // steps; 0: only after the last
  std::int64_t keep_checkpoints = 3;
  bool keep_best = true;                // also keep the checkpoint of the best validation loss
  std::optional<double> ema;            // decay of the average of the weights; none: there is no average
  std::int64_t stop_after_no_gain = 0;  // evaluations without a better loss, after which the run ends; 0: goes on
  std::int64_t skip_nonfinite = 0;      // steps in a row that may be left out for numbers that are not finite
  std::optional<double> hours;          // after which the run stops with a checkpoint
  std::optional<SampleConfig> sample;
  std::optional<ProfileConfig> profile;
  std::optional<ParallelConfig> parallel;
};

struct TrainConfig {
  std::uint64_t seed = 1;
  DataConfig data;
  ModelConfig model;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  TrainerConfig trainer;
  LoggingConfig logging;
  ConfigNode node;                 // what all of it was read from: errors are reported at the places of its values
  std::vector<std::string> notes;  // sentences for the user: which values were read otherwise than they were written
};

// Throws ConfigError. The registry knows the types of mixers and channel layers.
TrainConfig read_train_config(const ConfigNode& node, const Registry& registry = built_in_registry());
TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides = {},
                              const Registry& registry = built_in_registry());

// The resolved config: every field that has a meaning, in an order of its own. Equal configs give equal text, and the
// text reads back as an equal config.
std::string to_yaml(const TrainConfig& config, const Registry& registry = built_in_registry());

// Throws ConfigError, which names the key, where a config that a program has made or changed could not be read from a
// file: a number beyond its range, or values that contradict each other.
void check_config(const TrainConfig& config, const Registry& registry = built_in_registry());

// The loss scale of the first step; a dynamic one adapts from there.
double initial_loss_scale(const TrainerConfig& trainer);
// The same as a tree, to compare configs key by key.
ConfigValue to_tree(const TrainConfig& config, const Registry& registry = built_in_registry());

// The options of the data set of this config.
DatasetOptions dataset_options(const TrainConfig& config);

}  // namespace heddle
