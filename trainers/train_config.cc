#include "trainers/train_config.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/config/config_fields.h"
#include "core/config/config_load.h"
#include "core/config/config_tree.h"
#include "core/runtime/checked.h"
#include "layers/modules/choices.h"
#include "trainers/data/tokenizer.h"
#include "trainers/model/language_model.h"

namespace heddle {
namespace {

// Two tokens for a key with its value; keys and values have half of the vocabulary each.
constexpr std::int64_t kTokensPerPair = 2;
constexpr std::int64_t kByteValues = 256;

// The decay of wsd: a number of steps, or a share of all.
void describe_decay(ConfigFields& fields, ScheduleConfig& schedule) {
  if (schedule.type != ScheduleType::wsd) {
    for (const char* key : {"decay_steps", "decay_fraction", "decay_shape"}) {
      fields.refuse(key, "only type wsd has a decay of its own");
    }
    return;
  }
  fields.optional("decay_steps", schedule.decay_steps, Range::positive());
  if (schedule.decay_steps) {
    fields.refuse("decay_fraction", "decay_steps says how long the decay is");
  } else {
    fields.field("decay_fraction", schedule.decay_fraction, Range{0, 1, false, true});
  }
  fields.choice("decay_shape", schedule.decay_shape, {{"linear", DecayShape::linear}, {"sqrt", DecayShape::sqrt}});
}

void describe(ConfigFields& fields, ScheduleConfig& schedule) {
  fields.choice("type", schedule.type,
                {{"cosine", ScheduleType::cosine},
                 {"linear", ScheduleType::linear},
                 {"wsd", ScheduleType::wsd},
                 {"constant", ScheduleType::constant}});
  fields.field("warmup_steps", schedule.warmup_steps, Range::at_least(0));
  if (schedule.type != ScheduleType::constant) {
    fields.field("min_lr", schedule.min_lr, Range::at_least(0));
  } else {
    fields.refuse("min_lr", "with type constant the rate stays at optimizer.lr");
  }
  describe_decay(fields, schedule);
}

// A document begins with its separator, which is read before the prompt. A prompt that is empty, as it can be there
// alone, is not written: data that are not packed then have their own default.
void describe(ConfigFields& fields, SampleConfig& sample, const DataConfig& data) {
  if (fields.reads() && data.pack) sample.prompt = "";
  if (fields.reads() || !sample.prompt.empty()) fields.field("prompt", sample.prompt);
  if (fields.reads() && sample.prompt.empty() && !data.pack) {
    fields.fail("prompt", "found an empty prompt, expected at least one character; with data.pack it may be empty");
  }
  fields.field("tokens", sample.tokens, Range::positive());
  fields.field("temperature", sample.temperature, Range::at_least(0));
  fields.field("every", sample.every, Range::at_least(0));
}

// The gradient of a mean over thousands of tokens would be lost in float16, whose smallest number is 6e-8: there the
// loss is summed over the tokens, up to a power of two.
double default_loss_scale(const TrainerConfig& trainer) {
  const int64_t tokens = checked_product({trainer.batch_size, trainer.sequence_length}).value_or(1);  // checked later
  return static_cast<double>(std::bit_floor(static_cast<std::uint64_t>(tokens)));
}

// Only the range of float16 is too small. A scale of 1 says nothing; earlier versions wrote it for every dtype.
void describe_loss_scale(ConfigFields& fields, TrainerConfig& trainer) {
  const bool is_float16 = trainer.dtype == DType::float16;
  if (fields.reads()) {
    trainer.loss_scale = is_float16 ? default_loss_scale(trainer) : 1.0;
    if (!fields.node().has("loss_scale")) return;  // nor does null say anything, which takes a base's scale away
  }
  // The default follows from the size of a batch, and is not written, as field_or() says.
  if (fields.reads() || (is_float16 && trainer.loss_scale != default_loss_scale(trainer))) {
    fields.number_or_word("loss_scale", trainer.loss_scale, "dynamic", Range::positive());
  }
  if (!is_float16 && trainer.loss_scale != 1.0) {
    fields.refuse("loss_scale", fmt::format("gradients fit into the range of {} (trainer.loss_scale: null takes away "
                                            "that of another dtype)",
                                            name(trainer.dtype)));
  }
}

void describe(ConfigFields& fields, TrainerConfig& trainer, const DataConfig& data) {
  fields.required("steps", trainer.steps, Range::positive());
  fields.field("batch_size", trainer.batch_size, Range::positive());
  fields.field("sequence_length", trainer.sequence_length, Range::count());
  fields.field("accumulate", trainer.accumulate, Range::positive());
  fields.choice("dtype", trainer.dtype, dtype_choices());
  describe_loss_scale(fields, trainer);
  fields.choice("cuda_graph", trainer.cuda_graph, {{"auto", true}, {"off", false}});
  fields.field("search_gemm", trainer.search_gemm);
  fields.field("eval_every", trainer.eval_every, Range::at_least(0));
  fields.number_or_word("eval_batches", trainer.eval_batches, "all", Range::positive());
  fields.field("checkpoint_every", trainer.checkpoint_every, Range::at_least(0));
  fields.field("keep_checkpoints", trainer.keep_checkpoints, Range::positive());
  fields.field("keep_best", trainer.keep_best);
  fields.optional("ema", trainer.ema, Range::inside(0, 1));
  fields.field("stop_after_no_gain", trainer.stop_after_no_gain, Range::at_least(0));
  fields.field("skip_nonfinite", trainer.skip_nonfinite, Range::at_least(0));
  fields.optional("hours", trainer.hours, Range::positive());
  fields.optional_section<SampleConfig>(
      "sample", trainer.sample, [&](ConfigFields& section, SampleConfig& sample) { describe(section, sample, data); });
  fields.optional_section<ProfileConfig>(
      "profile", trainer.profile,
      [&](ConfigFields& section, ProfileConfig& profile) { describe(section, profile, trainer.steps); });
  fields.optional_section<ParallelConfig>(
      "parallel", trainer.parallel,
      [](ConfigFields& section, ParallelConfig& parallel) { describe(section, parallel); });
}

void describe(ConfigFields& fields, TrainConfig& config, const Registry& registry) {
  fields.field("seed", config.seed);
  fields.required_section("data", [&](ConfigFields& section) { describe(section, config.data); });
  fields.required_section("model", [&](ConfigFields& section) { describe(section, config.model, registry); });
  fields.section("optimizer", [&](ConfigFields& section) { describe(section, config.optimizer); });
  fields.section("schedule", [&](ConfigFields& section) { describe(section, config.schedule); });
  fields.required_section("trainer", [&](ConfigFields& section) { describe(section, config.trainer, config.data); });
  fields.section("logging", [&](ConfigFields& section) { describe(section, config.logging); });
}

// The `type` of a section that writes none.
template <class Section>
std::string default_type() {
  Section section;
  ConfigValue map;
  ConfigFields fields(map);
  describe(fields, section);
  return map.find("type")->value->scalar;
}

const DefaultTypes& default_types() {
  static const DefaultTypes types = {{"optimizer", default_type<OptimizerConfig>()},
                                     {"schedule", default_type<ScheduleConfig>()}};
  return types;
}

std::string count(std::int64_t value) { return std::to_string(value); }

void check_recall(const TrainConfig& config, const ConfigNode& data) {
  const std::int64_t sequence_length = config.trainer.sequence_length;
  const std::int64_t needed = kTokensPerPair * (config.data.num_pairs + config.data.num_queries);
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

void check_copy(const TrainConfig& config, const ConfigNode& data, const ConfigNode& model) {
  const std::int64_t sequence_length = config.trainer.sequence_length;
  if (config.data.length > sequence_length / 2) {
    data.fail("length", "found " + count(config.data.length) + ", expected at most half of trainer.sequence_length (" +
                            count(sequence_length) + ")");
  }
  if (config.model.vocab_size < 3) {
    model.fail("vocab_size", "found " + count(config.model.vocab_size) +
                                 ", expected at least 3 for data.type copy: a separator and two symbols");
  }
}

void check_separator(const TrainConfig& config, const ConfigNode& data) {
  const std::int64_t ids = is_bytes_of_text(config.data) ? kByteValues : config.model.vocab_size;
  if (config.data.separator < ids) return;
  data.fail("separator", "found " + count(config.data.separator) + ", expected less than " +
                             (is_bytes_of_text(config.data) ? "256: the tokens of this text are bytes"
                                                            : "model.vocab_size (" + count(ids) + ")"));
}

// Tokens and sequences of a run are counted by int64.
void check_counts(const TrainConfig& config, const ConfigNode& node) {
  const TrainerConfig& trainer = config.trainer;
  if (!checked_product({trainer.batch_size, trainer.sequence_length})) {
    node.fail("batch_size", fmt::format("found {} sequences of {} tokens, more than an int64 counts",
                                        trainer.batch_size, trainer.sequence_length));
  }
  if (!checked_product({trainer.steps, trainer.accumulate, trainer.batch_size, trainer.sequence_length})) {
    node.fail("steps", fmt::format("found {} steps of accumulate * batch_size * sequence_length = {} * {} * {} tokens, "
                                   "more than an int64 counts",
                                   trainer.steps, trainer.accumulate, trainer.batch_size, trainer.sequence_length));
  }
  const bool is_generated = config.data.type == DataType::mqar || config.data.type == DataType::copy;
  if (!is_generated) return;
  if (!trainer.eval_batches) {
    node.fail("eval_batches", "found all, expected a number: data.type mqar and copy have sequences without end");
  }
  if (!checked_product({*trainer.eval_batches, trainer.accumulate, trainer.batch_size, trainer.sequence_length})) {
    node.fail("eval_batches",
              fmt::format("found {} batches of batch_size * sequence_length = {} * {} tokens, more than "
                          "an int64 counts",
                          *trainer.eval_batches, trainer.batch_size, trainer.sequence_length));
  }
}

// A run that is shorter than its warm-up is all warm-up: what is trained a little to see that it works. The resolved
// config holds the steps that were meant, so that a longer run later is known to have another warm-up.
void cap_warmup(TrainConfig& config) {
  int64_t& warmup = config.schedule.warmup_steps;
  if (warmup <= config.trainer.steps) return;
  config.notes.push_back(fmt::format("schedule.warmup_steps is {}, but trainer.steps {}: the warm-up takes all of them",
                                     warmup, config.trainer.steps));
  warmup = config.trainer.steps;
}

// Where the decay of wsd would reach into the warm-up, it begins after it.
void note_cut_decay(TrainConfig& config) {
  const ScheduleConfig& schedule = config.schedule;
  const std::int64_t left = config.trainer.steps - schedule.warmup_steps;
  if (schedule.type != ScheduleType::wsd || !schedule.decay_steps || *schedule.decay_steps <= left) return;
  config.notes.push_back(
      fmt::format("schedule.decay_steps is {}, but after the warm-up there are {} steps: the decay "
                  "takes all of them",
                  *schedule.decay_steps, left));
}

// A pattern of the optimizer's groups must match a parameter of the model.
void check_groups(const TrainConfig& config) {
  if (config.optimizer.groups.empty()) return;
  const auto unmatched = find_unmatched_group(LanguageModel(config.model).parameters(), config.optimizer);
  if (!unmatched) return;
  config.node.section("optimizer").list("groups")[unmatched->index].fail("pattern", unmatched->message);
}

// Packed documents are told apart by every mixer.
void check_pack(const TrainConfig& config, const ConfigNode& data) {
  check_separator(config, data);
  if (takes_segments(config.model)) return;
  data.fail("pack",
            "found true, expected false: a mixer of this model does not keep documents apart (positions with "
            "lrpe.shape or lrpe.extra_tokens are those of a whole sequence)");
}

// Whether the device computes with what is written there, if it is a number.
bool is_computed_with(const std::string& path) {
  if (path.find(".pattern") != std::string::npos) return false;  // names, whatever they look like
  return path.starts_with("model.") || path.starts_with("optimizer.") || path.starts_with("schedule.") ||
         path == "trainer.loss_scale" || path == "trainer.ema";
}

// What a run writes of its config must be read as it was: YAML holds no bytes that are no UTF-8, and none of the
// characters that Unicode keeps out of texts, such as U+FFFF.
void check_can_be_written(const ConfigNode& config) {
  config.for_each_scalar([](const std::string& path, const ConfigValue& value) {
    ConfigValue text = value;
    text.quoted = true;  // alone in a line "---" would be more than text
    if (parse_yaml(to_line(text), "")->scalar == value.scalar) return;
    throw ConfigError(value.location,
                      fmt::format("{}: found bytes that are no UTF-8, or characters that are none of a text, which the "
                                  "config of a run cannot hold; a symbolic link can give a file another name",
                                  path));
  });
}

// The device holds numbers in the accumulate type. One that is beyond its normal numbers becomes inf or 0 there, or its
// reciprocal does.
void check_numbers(const TrainConfig& config) {
  const DType held_in = accumulate_type(config.trainer.dtype);
  const bool is_double = held_in == DType::float64;
  const double smallest = is_double ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const double largest = is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  config.node.for_each_scalar([&](const std::string& path, const ConfigValue& value) {
    if (value.quoted || !is_computed_with(path)) return;
    const double size = std::abs(number_of<double>(value.scalar).value_or(0.0));
    if (size == 0.0 || (size >= smallest && size <= largest)) return;
    throw ConfigError(value.location,
                      fmt::format("{}: found '{}', expected a number of a size in [{:.2g}, {:.2g}]: trainer.dtype {} "
                                  "computes in {}",
                                  path, value.scalar, smallest, largest, name(config.trainer.dtype), name(held_in)));
  });
}

// A grid of positions, as lrpe_cosine has by `shape`, makes sequences of one length, which cannot be continued.
void check_fixed_length(const TrainConfig& config, const ConfigNode& trainer) {
  const std::optional<std::int64_t> length = fixed_length(config.model);
  if (!length) return;
  if (config.trainer.sequence_length != *length) {
    trainer.fail("sequence_length", "found " + count(config.trainer.sequence_length) + ", expected " + count(*length) +
                                        ", the tokens of lrpe.shape and lrpe.extra_tokens");
  }
  if (config.trainer.sample) {
    trainer.fail("sample", "found a sample, expected none: a text on the grid of lrpe.shape cannot be continued");
  }
}

// The rules between sections. The place that is named is that of the key a user would change.
void check_train_config(const TrainConfig& config) {
  const ConfigNode data = config.node.section("data");
  const ConfigNode model = config.node.section("model");
  const ConfigNode schedule = config.node.section("schedule");
  const ConfigNode trainer = config.node.section("trainer");
  check_numbers(config);
  if (config.schedule.min_lr > config.optimizer.lr) {
    schedule.fail("min_lr", "found " + format_scalar(config.schedule.min_lr) + ", expected at most optimizer.lr (" +
                                format_scalar(config.optimizer.lr) + ")");
  }
  const bool has_bytes = config.data.tokenizer == kByteTokenizer;
  if (has_bytes && config.model.vocab_size < kByteValues) {
    model.fail("vocab_size", "found " + count(config.model.vocab_size) +
                                 ", expected at least 256: tokens of data.type text are bytes");
  }
  if (config.data.pack) check_pack(config, data);
  if (config.data.type == DataType::mqar) check_recall(config, data);
  if (config.data.type == DataType::copy) check_copy(config, data, model);
  check_counts(config, trainer);
  check_groups(config);
  check_fixed_length(config, trainer);
  if (config.trainer.sample && !config.data.tokenizer) {
    trainer.fail("sample",
                 "found a sample, expected none: only data.type text can be written out, and token files "
                 "with data.tokenizer");
  }
}

}  // namespace

TrainConfig read_train_config(const ConfigNode& node, const Registry& registry) {
  TrainConfig config;
  config.node = node;
  ConfigFields fields(node);
  describe(fields, config, registry);
  node.finish();
  check_can_be_written(node);
  check_train_config(config);
  cap_warmup(config);
  note_cut_decay(config);
  return config;
}

TrainConfig load_train_config(const std::string& path, std::span<const std::string> overrides,
                              const Registry& registry) {
  return read_train_config(load_config(path, overrides, default_types()), registry);
}

ConfigValue to_tree(const TrainConfig& config, const Registry& registry) {
  TrainConfig written = config;  // a description reads or writes; writing changes nothing
  ConfigValue map;
  ConfigFields fields(map);
  describe(fields, written, registry);
  return map;
}

double initial_loss_scale(const TrainerConfig& trainer) {
  return trainer.loss_scale.value_or(default_loss_scale(trainer));
}

namespace {

// A batch of an evaluation is as large as a step.
std::optional<std::int64_t> eval_sequences(const TrainerConfig& trainer) {
  if (!trainer.eval_batches) return std::nullopt;
  const auto sequences = checked_product({*trainer.eval_batches, trainer.batch_size, trainer.accumulate});
  return sequences.value_or(std::numeric_limits<std::int64_t>::max());
}

}  // namespace
std::string to_yaml(const TrainConfig& config, const Registry& registry) { return to_yaml(to_tree(config, registry)); }

// Its description says what it may hold, whether it is read or made.
void check_config(const TrainConfig& config, const Registry& registry) {
  const Location made{"TrainConfig"};
  read_train_config(ConfigNode(parse_yaml(to_yaml(config, registry), made.file, &made)), registry);
}

DatasetOptions dataset_options(const TrainConfig& config) {
  return {.data = config.data,
          .batch_size = config.trainer.batch_size,
          .sequence_length = config.trainer.sequence_length,
          .eval_sequences = eval_sequences(config.trainer),
          .seed = config.seed,
          .vocab_size = config.model.vocab_size,
          .section = config.node.section("data")};
}

}  // namespace heddle
