// The configuration of a training run: what the YAML of `heddle train` says.              docs/config.md
// Reading checks types, ranges, unknown keys and the rules between sections; every error is a ConfigError that names
// file, line and column. The options of norm, mixer and channel are read by the layers that own them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/config/config_node.h"
#include "core/tensor/dtype.h"

namespace heddle {

enum class DataType { text, tokens, mqar, copy };
enum class TokenWidth { uint16, uint32 };
enum class ScheduleType { cosine, linear, constant };

// Where batches come from. Only the fields of `type` have a meaning.
struct DataConfig {
  DataType type = DataType::text;
  std::string path;                             // text: file or glob; tokens: file of raw little-endian ids
  double validation_fraction = 0.05;            // text, tokens: the share at the end kept for evaluation
  TokenWidth token_width = TokenWidth::uint16;  // tokens
  std::int64_t num_pairs = 8;                   // mqar: key-value pairs to remember
  std::int64_t num_queries = 8;                 // mqar: keys asked for again
  std::int64_t length = 32;                     // copy: tokens to repeat
};

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t dim = 0;
  std::int64_t layers = 0;
  bool tie_embeddings = false;  // the head uses the embedding's weight
  ConfigNode norm;              // read by the layer registry, as mixer and channel
  ConfigNode mixer;
  ConfigNode channel;
};

// AdamW with decoupled weight decay.
struct OptimizerConfig {
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // largest global gradient norm; 0: no clipping
};

// Linear warm-up to optimizer.lr, then down to min_lr at the last step.
struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  std::int64_t warmup_steps = 0;
  double min_lr = 0;
};

// Text generated at the end of training.
struct SampleConfig {
  std::string prompt = "\n";
  std::int64_t tokens = 200;
  double temperature = 0.8;  // 0: always the likeliest token
};

struct TrainerConfig {
  std::int64_t steps = 0;        // optimizer steps
  std::int64_t batch_size = 16;  // sequences of one forward pass
  std::int64_t sequence_length = 256;
  std::int64_t accumulate = 1;    // forward passes of one optimizer step
  DType dtype = DType::float32;   // of activations; parameters keep a float32 master
  double loss_scale = 1.0;        // the loss is multiplied by it before backward; larger in float16
  bool cuda_graph = true;         // replay the step as a CUDA graph, where there is a GPU
  std::int64_t eval_every = 200;  // steps; 0: only after the last
  std::int64_t eval_batches = 20;
  std::int64_t checkpoint_every = 200;  // steps; 0: only after the last
  std::int64_t keep_checkpoints = 3;
  std::optional<SampleConfig> sample;
};

struct TrainConfig {
  std::uint64_t seed = 1;
  DataConfig data;
  ModelConfig model;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  TrainerConfig trainer;
  // The tree all of it was read from. node.dump() is the resolved config once the model is built (layers fill in their
  // defaults); node.section("data").fail("path", ...) reports at the place in the file.
  ConfigNode node;
};

// Throws ConfigError.
TrainConfig read_train_config(const ConfigNode& node);
TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides = {});

}  // namespace heddle
