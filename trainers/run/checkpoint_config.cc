#include "trainers/run/checkpoint_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_difference.h"
#include "core/config/config_load.h"
#include "trainers/run/run_tokenizer.h"

namespace heddle {
namespace {

// Earlier versions wrote this key into every config, though it has no meaning in a model. false took the residual
// stream away: such a model cannot be built any more, and another one must not take its place.
void accept_former_keys(const ConfigNode& config) {
  const ConfigNode norm = config.section("model").section("norm");
  if (!norm.get<bool>("return_residual", true)) {
    norm.fail("return_residual", "found false, expected true: models without a residual stream are not built any more");
  }
}

// "optimizer.lr is 0.01, the checkpoint's 0.003"
std::string describe(const ConfigDifference& difference) {
  const std::string now = difference.first.empty() ? "missing" : difference.first;
  if (difference.second.empty()) return fmt::format("{} is {}, the checkpoint has none", difference.path, now);
  return fmt::format("{} is {}, the checkpoint's {}", difference.path, now, difference.second);
}

// The differences that change the run.
std::vector<ConfigDifference> differences(const TrainConfig& config, const Checkpoint& checkpoint,
                                          const Registry& registry, const std::optional<TokenizerIdentity>& tokenizer) {
  TrainConfig then = read_checkpoint_config(checkpoint, {}, registry);
  // What is written about a run, and by how many processes it is computed, does not change the run.
  then.logging = config.logging;
  then.trainer.profile = config.trainer.profile;
  then.trainer.sample = config.trainer.sample;
  then.trainer.parallel = config.trainer.parallel;
  then.trainer.hours = config.trainer.hours;
  if (is_same(tokenizer, checkpoint.state.tokenizer)) then.data.tokenizer = config.data.tokenizer;
  return config_differences(to_tree(config, registry), to_tree(then, registry));
}

// Whether evaluations with these two limits read the same sequences. How many are read follows from the batch size and
// `accumulate`, too. A limit that `data` do not reach is none; of several sources some may reach their share of it.
bool are_equal_limits(const DatasetOptions& now, const DatasetOptions& then, const Dataset& data) {
  if (now.eval_sequences == then.eval_sequences) return true;
  const int64_t read = data.validation_sequences();
  const bool reads_all = now.data.sources.empty() && now.eval_sequences.value_or(INT64_MAX) > read;
  return reads_all && then.eval_sequences.value_or(INT64_MAX) >= read;
}

bool are_equal_weights(const std::vector<DataSource>& now, const std::vector<DataSource>& then) {
  return std::equal(now.begin(), now.end(), then.begin(), then.end(),
                    [](const DataSource& a, const DataSource& b) { return a.weight == b.weight; });
}

// Where files of data lie does not matter: they are told apart by their contents. Generated sequences are drawn by the
// seed.
bool changes_sequences(const std::string& key, const DataConfig& now, const DataConfig& then) {
  if (key == "seed") return now.type == DataType::mqar || now.type == DataType::copy;
  if (key == "data.sources") return !are_equal_weights(now.sources, then.sources);
  return key == "trainer.sequence_length" || (key.starts_with("data") && !key.ends_with("path"));
}

}  // namespace

TrainConfig read_checkpoint_config(const Checkpoint& checkpoint, std::span<const std::string> overrides,
                                   const Registry& registry) {
  const ConfigNode node = parse_config(checkpoint.state.config, "config of " + checkpoint.path.string(), overrides);
  accept_former_keys(node);
  return read_train_config(node, registry);
}

KeptCheckpoints kept_checkpoints(const TrainerConfig& trainer) { return {trainer.keep_checkpoints, trainer.keep_best}; }

TrainedOn trained_on(const Checkpoint& checkpoint, const TrainConfig& config, const Registry& registry) {
  if (checkpoint.state.trained_on) return *checkpoint.state.trained_on;
  const auto of = [&](const TrainerConfig& trainer) {
    const int64_t sequences = checkpoint.state.step * trainer.accumulate * trainer.batch_size;
    return TrainedOn{sequences, sequences * trainer.sequence_length};
  };
  try {
    return of(read_checkpoint_config(checkpoint, {}, registry).trainer);
  } catch (const ConfigError&) {
    return of(config.trainer);
  }
}

std::string config_difference(const TrainConfig& config, const Checkpoint& checkpoint, const Registry& registry,
                              const std::optional<TokenizerIdentity>& tokenizer) {
  std::string text;
  for (const ConfigDifference& difference : differences(config, checkpoint, registry, tokenizer)) {
    text += (text.empty() ? "" : "; ") + describe(difference);
  }
  return text;
}

bool is_evaluated_alike(const TrainConfig& config, const Dataset& data, const Checkpoint& checkpoint,
                        const Registry& registry) {
  if (!data_difference(data.identity(), checkpoint).empty()) return false;
  try {
    const TrainConfig then = read_checkpoint_config(checkpoint, {}, registry);
    if (!are_equal_limits(dataset_options(config), dataset_options(then), data)) return false;
    const auto found = differences(config, checkpoint, registry, checkpoint.state.tokenizer);
    return std::none_of(found.begin(), found.end(), [&](const ConfigDifference& difference) {
      return changes_sequences(difference.path, config.data, then.data);
    });
  } catch (const ConfigError&) {
    return true;
  }
}

}  // namespace heddle
