#include "trainers/train_config.h"

#include <bit>
#include <vector>

#include "core/config/config_load.h"
#include "layers/dtype_choices.h"

namespace heddle {
namespace {

// Two tokens for a key with its value; keys and values have half of the vocabulary each.
constexpr std::int64_t tokens_per_pair = 2;
constexpr std::int64_t byte_values = 256;

DataConfig read_data(const ConfigNode& node) {
  DataConfig data;
  data.type = node.require_choice<DataType>(
      "type",
      {{"text", DataType::text}, {"tokens", DataType::tokens}, {"mqar", DataType::mqar}, {"copy", DataType::copy}});
  const bool from_file = data.type == DataType::text || data.type == DataType::tokens;
  if (from_file) {
    data.path = node.require<std::string>("path");
    if (data.path.empty()) node.fail("path", "found an empty path, expected a file");
    data.validation_fraction = node.get<double>("validation_fraction", data.validation_fraction, Range::inside(0, 1));
  }
  if (data.type == DataType::tokens) {
    data.token_width = node.get_choice<TokenWidth>("token_width", data.token_width,
                                                   {{"uint16", TokenWidth::uint16}, {"uint32", TokenWidth::uint32}});
  }
  if (data.type == DataType::mqar) {
    data.num_pairs = node.get<std::int64_t>("num_pairs", data.num_pairs, Range::at_least(1));
    data.num_queries = node.get<std::int64_t>("num_queries", data.num_pairs, Range::between(1, data.num_pairs));
  }
  if (data.type == DataType::copy) {
    data.length = node.get<std::int64_t>("length", data.length, Range::at_least(1));
  }
  node.finish();
  return data;
}

ModelConfig read_model(const ConfigNode& node) {
  ModelConfig model;
  model.vocab_size = node.require<std::int64_t>("vocab_size", Range::at_least(2));
  model.dim = node.require<std::int64_t>("dim", Range::positive());
  model.layers = node.require<std::int64_t>("layers", Range::positive());
  model.norm = node.require_section("norm");
  model.mixer = node.require_section("mixer");
  model.channel = node.require_section("channel");
  model.tie_embeddings = node.get<bool>("tie_embeddings", model.tie_embeddings);
  node.finish();
  return model;
}

OptimizerConfig read_optimizer(const ConfigNode& node) {
  OptimizerConfig optimizer;
  node.get_name("type", "adamw", {"adamw"});
  optimizer.lr = node.get<double>("lr", optimizer.lr, Range::positive());
  const auto betas =
      node.get<std::vector<double>>("betas", {optimizer.betas[0], optimizer.betas[1]}, Range::from_below(0, 1));
  if (betas.size() != optimizer.betas.size()) {
    node.fail("betas", "found a list of " + std::to_string(betas.size()) + ", expected two numbers");
  }
  optimizer.betas = {betas[0], betas[1]};
  optimizer.eps = node.get<double>("eps", optimizer.eps, Range::positive());
  optimizer.weight_decay = node.get<double>("weight_decay", optimizer.weight_decay, Range::at_least(0));
  optimizer.clip_norm = node.get<double>("clip_norm", optimizer.clip_norm, Range::at_least(0));
  node.finish();
  return optimizer;
}

ScheduleConfig read_schedule(const ConfigNode& node) {
  ScheduleConfig schedule;
  schedule.type = node.get_choice<ScheduleType>(
      "type", schedule.type,
      {{"cosine", ScheduleType::cosine}, {"linear", ScheduleType::linear}, {"constant", ScheduleType::constant}});
  schedule.warmup_steps = node.get<std::int64_t>("warmup_steps", schedule.warmup_steps, Range::at_least(0));
  if (schedule.type != ScheduleType::constant) {
    schedule.min_lr = node.get<double>("min_lr", schedule.min_lr, Range::at_least(0));
  }
  node.finish();
  return schedule;
}

SampleConfig read_sample(const ConfigNode& node) {
  SampleConfig sample;
  sample.prompt = node.get<std::string>("prompt", sample.prompt);
  if (sample.prompt.empty()) node.fail("prompt", "found an empty prompt, expected at least one character");
  sample.tokens = node.get<std::int64_t>("tokens", sample.tokens, Range::positive());
  sample.temperature = node.get<double>("temperature", sample.temperature, Range::at_least(0));
  node.finish();
  return sample;
}

TrainerConfig read_trainer(const ConfigNode& node) {
  TrainerConfig trainer;
  trainer.steps = node.require<std::int64_t>("steps", Range::positive());
  trainer.batch_size = node.get<std::int64_t>("batch_size", trainer.batch_size, Range::positive());
  trainer.sequence_length = node.get<std::int64_t>("sequence_length", trainer.sequence_length, Range::positive());
  trainer.accumulate = node.get<std::int64_t>("accumulate", trainer.accumulate, Range::positive());
  trainer.dtype = node.get_choice<DType>("dtype", trainer.dtype, dtype_choices());
  // The gradient of a mean over thousands of tokens would be lost in float16, whose smallest number is 6e-8: there the
  // loss is summed over the tokens, up to a power of two.
  const auto tokens = static_cast<std::uint64_t>(trainer.batch_size * trainer.sequence_length);
  const double loss_scale = trainer.dtype == DType::float16 ? static_cast<double>(std::bit_floor(tokens)) : 1.0;
  trainer.loss_scale = node.get<double>("loss_scale", loss_scale, Range::positive());
  trainer.cuda_graph = node.get_choice<bool>("cuda_graph", true, {{"auto", true}, {"off", false}});
  trainer.eval_every = node.get<std::int64_t>("eval_every", trainer.eval_every, Range::at_least(0));
  trainer.eval_batches = node.get<std::int64_t>("eval_batches", trainer.eval_batches, Range::positive());
  trainer.checkpoint_every = node.get<std::int64_t>("checkpoint_every", trainer.checkpoint_every, Range::at_least(0));
  trainer.keep_checkpoints = node.get<std::int64_t>("keep_checkpoints", trainer.keep_checkpoints, Range::positive());
  if (const auto sample = node.find_section("sample")) trainer.sample = read_sample(*sample);
  node.finish();
  return trainer;
}

std::string count(std::int64_t value) { return std::to_string(value); }

void check_generated_tasks(const TrainConfig& config, const ConfigNode& data, const ConfigNode& model) {
  const std::int64_t sequence_length = config.trainer.sequence_length;
  if (config.data.type == DataType::mqar) {
    const std::int64_t needed = tokens_per_pair * (config.data.num_pairs + config.data.num_queries);
    if (sequence_length < needed) {
      data.fail("num_pairs", "found " + count(config.data.num_pairs) + " pairs and " + count(config.data.num_queries) +
                                 " queries, which need trainer.sequence_length >= " + count(needed) + ", found " +
                                 count(sequence_length));
    }
    const std::int64_t keys = config.model.vocab_size / 2;
    if (config.data.num_pairs >= keys) {
      data.fail("num_pairs", "found " + count(config.data.num_pairs) + ", expected less than " + count(keys) +
                                 ", half of model.vocab_size: each pair has its own key");
    }
  }
  if (config.data.type == DataType::copy) {
    if (sequence_length < 2 * config.data.length) {
      data.fail("length", "found " + count(config.data.length) +
                              ", expected at most half of trainer.sequence_length (" + count(sequence_length) + ")");
    }
    if (config.model.vocab_size < 3) {
      model.fail("vocab_size", "found " + count(config.model.vocab_size) +
                                   ", expected at least 3 for data.type copy: a separator and two symbols");
    }
  }
}

// Rules between sections. The place named is that of the key a user would change.
void check_train_config(const TrainConfig& config) {
  const ConfigNode data = config.node.section("data");
  const ConfigNode model = config.node.section("model");
  const ConfigNode schedule = config.node.section("schedule");
  const ConfigNode trainer = config.node.section("trainer");
  if (config.schedule.warmup_steps > config.trainer.steps) {
    schedule.fail("warmup_steps", "found " + count(config.schedule.warmup_steps) +
                                      ", expected at most trainer.steps (" + count(config.trainer.steps) + ")");
  }
  if (config.schedule.min_lr > config.optimizer.lr) {
    schedule.fail("min_lr", "found " + format_scalar(config.schedule.min_lr) + ", expected at most optimizer.lr (" +
                                format_scalar(config.optimizer.lr) + ")");
  }
  if (config.data.type == DataType::text && config.model.vocab_size < byte_values) {
    model.fail("vocab_size", "found " + count(config.model.vocab_size) +
                                 ", expected at least 256: tokens of data.type text are bytes");
  }
  check_generated_tasks(config, data, model);
  if (config.trainer.sample && config.data.type != DataType::text) {
    trainer.fail("sample", "found a sample, expected none: only data.type text can be written out");
  }
}

}  // namespace

TrainConfig read_train_config(const ConfigNode& node) {
  TrainConfig config;
  config.node = node;
  config.seed = node.get<std::uint64_t>("seed", config.seed);
  config.data = read_data(node.require_section("data"));
  config.model = read_model(node.require_section("model"));
  config.optimizer = read_optimizer(node.section("optimizer"));
  config.schedule = read_schedule(node.section("schedule"));
  config.trainer = read_trainer(node.require_section("trainer"));
  node.finish();
  check_train_config(config);
  return config;
}

TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides) {
  return read_train_config(load_config(path, overrides));
}

}  // namespace heddle
