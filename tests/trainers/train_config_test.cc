#include "trainers/train_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "tests/config/bad_configs.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/schedule.h"
#include "trainers/train_step.h"

namespace heddle::train_config_test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::BadConfig;
using ::testing::HasSubstr;
using ::testing::Not;

class BadConfigs : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, NamesThePlaceAndTheFix) {
  const BadConfig& bad = GetParam();
  const testing::TempFolder folder;
  const fs::path path = testing::write_bad_config(bad, folder.path());
  const bool of_command_line = bad.location.starts_with("--set");
  const std::string location = of_command_line ? bad.location : (folder / bad.location).string();
  try {
    load_train_config(path.string(), bad.overrides);
    ADD_FAILURE() << "accepted; expected an error at " << location;
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.location().to_string(), location) << error.what();
    EXPECT_NE(error.message().find(bad.message), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()), location + ": " + error.message());
  }
}

INSTANTIATE_TEST_SUITE_P(Table, BadConfigs, ::testing::ValuesIn(testing::bad_configs()),
                         [](const auto& info) { return info.param.name; });

std::string good_config() {
  std::string text;
  for (const std::string& line : testing::good_config_lines()) text += line + "\n";
  return text;
}

TEST(TrainConfigTest, ReadsWhatIsWrittenAndFillsInTheRest) {
  const TrainConfig config = read_train_config(parse_config(good_config()));
  EXPECT_EQ(config.seed, 1u);
  EXPECT_EQ(config.data.type, DataType::text);
  EXPECT_EQ(config.data.path, "text.txt");
  EXPECT_EQ(config.data.validation_fraction, 0.1);
  EXPECT_EQ(config.model.vocab_size, 256);
  EXPECT_EQ(config.model.norm.type, NormType::srms_norm);
  EXPECT_EQ(config.model.mixer.of_layer(0).type, "lightning");
  EXPECT_EQ(config.model.channel.type, "glu");
  EXPECT_EQ(config.optimizer.lr, 3e-3);
  EXPECT_EQ(config.optimizer.clip_norm, 1.0);
  EXPECT_EQ(config.schedule.type, ScheduleType::cosine);
  EXPECT_EQ(config.schedule.warmup_steps, 10);
  EXPECT_EQ(config.trainer.dtype, DType::float32);
  EXPECT_EQ(config.trainer.accumulate, 1);
  ASSERT_TRUE(config.trainer.sample.has_value());
  EXPECT_EQ(config.trainer.sample->prompt, "a");
  EXPECT_EQ(config.trainer.sample->temperature, 0.8);
}

// Reads the text and writes it again.
std::string again(const std::string& text) { return to_yaml(read_train_config(parse_config(text))); }

TEST(TrainConfigTest, ResolvedConfigHoldsEveryDefault) {
  EXPECT_EQ(to_yaml(read_train_config(parse_config(good_config()))), R"(seed: 1
data:
  type: text
  path: text.txt
  validation_fraction: 0.1
  tokenizer: bytes
  pack: false
model:
  vocab_size: 256
  dim: 16
  layers: 2
  tie_embeddings: false
  recompute: none
  dropout: 0
  loss_chunk: 0
  norm:
    type: srms_norm
    eps: 1.0e-06
    scale: 1
    weight: false
    bias: false
  mixer:
    type: lightning
    heads: 2
    act: silu
  channel:
    type: glu
    hidden: 32
    act: silu
optimizer:
  type: adamw
  lr: 0.003
  betas: [0.9, 0.95]
  eps: 1.0e-08
  weight_decay: 0.1
  clip_norm: 1
schedule:
  type: cosine
  warmup_steps: 10
  min_lr: 0
trainer:
  steps: 100
  batch_size: 2
  sequence_length: 64
  accumulate: 1
  dtype: float32
  cuda_graph: auto
  search_gemm: false
  eval_every: 200
  eval_batches: 20
  checkpoint_every: 200
  keep_checkpoints: 3
  keep_best: true
  stop_after_no_gain: 0
  skip_nonfinite: 0
  sample:
    prompt: a
    tokens: 20
    temperature: 0.8
    every: 0
logging:
  csv: true
  tensorboard: false
  jsonl: false
  every: 1
)");
}

TEST(TrainConfigTest, OnlyFieldsWithAMeaningAreWritten) {
  const auto text = [](const std::vector<std::string>& overrides) {
    return to_yaml(testing::tiny_train_config(overrides));
  };
  EXPECT_THAT(text({}), HasSubstr("data:\n  type: copy\n  length: 6\nmodel:"));
  EXPECT_THAT(text({"data={type: mqar, num_pairs: 2}"}), HasSubstr("data:\n  type: mqar\n  num_pairs: 2\nmodel:"));
  EXPECT_THAT(text({"data={type: mqar, num_pairs: 2, num_queries: 1}"}),
              HasSubstr("data:\n  type: mqar\n  num_pairs: 2\n  num_queries: 1\nmodel:"));
  EXPECT_THAT(text({"data={type: tokens, path: a}"}),
              HasSubstr("  path: a\n  validation_fraction: 0.05\n  pack: false\n  token_width: uint16\nmodel:"));
  EXPECT_THAT(text({"schedule={type: constant}"}),
              HasSubstr("schedule:\n  type: constant\n  warmup_steps: 0\ntrainer:"));
  EXPECT_THAT(text({}), AllOf(Not(HasSubstr("sample:")), Not(HasSubstr("profile:"))));
  EXPECT_THAT(text({"trainer.profile={steps: [10, 12]}"}), HasSubstr("  profile:\n    steps: [10, 12]\nlogging:"));
  EXPECT_THAT(text({"trainer.profile={steps: [40, 40], trace: t.json}"}),
              HasSubstr("  profile:\n    steps: [40, 40]\n    trace: t.json\nlogging:"));
  EXPECT_THAT(text({"model.mixer.lrpe=null"}), Not(HasSubstr("lrpe:")));
}

TEST(TrainConfigTest, AllValidationBatchesAreAWord) {
  const std::vector<std::string> all = {"trainer.eval_batches=all"};
  const TrainConfig config = read_train_config(parse_config(good_config(), "config", all));
  EXPECT_FALSE(config.trainer.eval_batches.has_value());
  EXPECT_THAT(to_yaml(config), HasSubstr("  eval_batches: all\n"));
  EXPECT_EQ(again(to_yaml(config)), to_yaml(config));
}

TEST(TrainConfigTest, TheLossScaleOfFloat16IsThatOfTheBatch) {
  EXPECT_EQ(testing::tiny_train_config({"trainer.dtype=float16"}).trainer.loss_scale, 64.0);
  EXPECT_EQ(testing::tiny_train_config({"trainer.dtype=float16", "trainer.batch_size=5"}).trainer.loss_scale, 64.0);
  EXPECT_EQ(testing::tiny_train_config({"trainer.dtype=float16", "trainer.loss_scale=3"}).trainer.loss_scale, 3.0);
  EXPECT_EQ(testing::tiny_train_config({"trainer.dtype=bfloat16"}).trainer.loss_scale, 1.0);
  EXPECT_EQ(testing::tiny_train_config({"trainer.loss_scale=1"}).trainer.loss_scale, 1.0);
  EXPECT_THAT(to_yaml(testing::tiny_train_config({"trainer.dtype=float16", "trainer.loss_scale=3"})),
              HasSubstr("  loss_scale: 3\n"));
}

// A run of float16 is used in another dtype, and a config goes another way than its base.
TEST(TrainConfigTest, NullTakesALossScaleAway) {
  for (const char* scale : {"3", "dynamic"}) {
    const std::string text =
        to_yaml(testing::tiny_train_config({"trainer.dtype=float16", std::string("trainer.loss_scale=") + scale}));
    const auto changed = [&](const std::vector<std::string>& overrides) {
      return read_train_config(parse_config(text, "config", overrides)).trainer.loss_scale;
    };
    EXPECT_EQ(changed({"trainer.loss_scale=null"}), 64.0);
    EXPECT_EQ(changed({"trainer.dtype=float32", "trainer.loss_scale=null"}), 1.0);
    try {
      changed({"trainer.dtype=float32"});
      ADD_FAILURE() << scale << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.message(),
                  AllOf(HasSubstr(std::string("trainer.loss_scale: found '") + scale + "', expected no such key"),
                        HasSubstr("trainer.loss_scale: null takes away that of another dtype")));
    }
  }
}

// float64 holds what float32 does not; a name is no number.
TEST(TrainConfigTest, OnlyNumbersThatTheDeviceCannotHoldAreRefused) {
  const std::string pattern =
      "model.mixer={pattern: [1e300], kinds: {1e300: {type: retention, heads: 2, eps: 1.0e-60}}}";
  const TrainConfig config =
      testing::tiny_train_config({pattern, "optimizer.eps=1.0e-46", "trainer.hours=1.0e+300", "trainer.dtype=float64"});
  EXPECT_EQ(config.optimizer.eps, 1e-46);
  EXPECT_THROW(testing::tiny_train_config({pattern}), ConfigError);
}

TEST(TrainConfigTest, WithoutMomentumNothingLooksAhead) {
  EXPECT_FALSE(testing::tiny_train_config({"optimizer={type: muon, momentum: 0}"}).optimizer.nesterov);
  EXPECT_TRUE(testing::tiny_train_config({"optimizer={type: muon}"}).optimizer.nesterov);
  EXPECT_THROW(testing::tiny_train_config({"optimizer={type: muon, momentum: 0, nesterov: true}"}), ConfigError);
}

// The config of a run holds no default that follows from another key, which a change of that key would leave behind.
TEST(TrainConfigTest, DefaultsThatFollowFromOtherKeysFollowInTheConfigOfARun) {
  const auto changed = [](const std::vector<std::string>& first, const std::vector<std::string>& then) {
    return read_train_config(parse_config(to_yaml(testing::tiny_train_config(first)), "config", then));
  };
  const std::vector<std::string> mqar = {"data={type: mqar, num_pairs: 2}"};
  EXPECT_EQ(changed(mqar, {"data.num_pairs=1"}).data.num_queries, 1);
  EXPECT_EQ(changed(mqar, {"data.num_pairs=3"}).data.num_queries, 3);
  EXPECT_EQ(changed({"data={type: mqar, num_pairs: 2, num_queries: 1}"}, {"data.num_pairs=3"}).data.num_queries, 1);
  const std::vector<std::string> muon = {"optimizer={type: muon}"};
  EXPECT_TRUE(changed(muon, {}).optimizer.nesterov);
  EXPECT_FALSE(changed(muon, {"optimizer.momentum=0"}).optimizer.nesterov);
  EXPECT_FALSE(changed({"optimizer={type: muon, nesterov: false}"}, {}).optimizer.nesterov);
  EXPECT_FALSE(changed({"optimizer={type: muon, momentum: 0}"}, {}).optimizer.nesterov);
  EXPECT_TRUE(changed({"optimizer={type: muon, momentum: 0}"}, {"optimizer.momentum=0.9"}).optimizer.nesterov);
  EXPECT_TRUE(changed({"optimizer={type: sgd, nesterov: true}"}, {}).optimizer.nesterov);
  const std::vector<std::string> float16 = {"trainer.dtype=float16"};
  EXPECT_EQ(changed(float16, {}).trainer.loss_scale, 64.0);
  EXPECT_EQ(changed(float16, {"trainer.batch_size=8"}).trainer.loss_scale, 128.0);
  EXPECT_EQ(changed(float16, {"trainer.dtype=float32"}).trainer.loss_scale, 1.0);
}

// So that anybody may try a config for a few steps.
TEST(TrainConfigTest, AWarmupLongerThanTheRunIsCut) {
  const TrainConfig short_run = testing::tiny_train_config({"trainer.steps=3"});
  EXPECT_EQ(short_run.schedule.warmup_steps, 3);
  EXPECT_EQ(short_run.notes,
            std::vector<std::string>{"schedule.warmup_steps is 5, but trainer.steps 3: the warm-up takes all of them"});
  EXPECT_THAT(to_yaml(short_run), HasSubstr("  warmup_steps: 3\n"));
  EXPECT_EQ(again(to_yaml(short_run)), to_yaml(short_run));
  EXPECT_DOUBLE_EQ(learning_rate(short_run, 1), short_run.optimizer.lr / 3);
  EXPECT_DOUBLE_EQ(learning_rate(short_run, 3), short_run.optimizer.lr);
  const TrainConfig whole = testing::tiny_train_config({"trainer.steps=5"});
  EXPECT_EQ(whole.schedule.warmup_steps, 5);
  EXPECT_TRUE(whole.notes.empty());
}

TEST(TrainConfigTest, KeysAreComparedAsATree) {
  const ConfigValue tree = to_tree(testing::tiny_train_config());
  EXPECT_EQ(to_yaml(tree), to_yaml(testing::tiny_train_config()));
}

// Options of an operator without a meaning inside a model are refused.
TEST(TrainConfigTest, OptionsWithoutAMeaningAreRefused) {
  for (const char* key : {"return_residual", "gate"}) {
    try {
      testing::tiny_train_config({std::string("model.norm.") + key + "=true"});
      ADD_FAILURE() << key << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.message(), HasSubstr(std::string("unknown key '") + key + "' in model.norm"));
    }
  }
}

TEST(TrainConfigTest, ReadingBuildingAndTrainingChangeNothing) {
  const ConfigNode node = parse_config(testing::tiny_config());
  const TrainConfig config = read_train_config(node);
  const std::string text = to_yaml(config);
  EXPECT_EQ(to_yaml(read_train_config(node)), text);
  const LanguageModel first(config.model), second(config.model);
  EXPECT_EQ(first.parameters().count(), second.parameters().count());
  EXPECT_EQ(to_yaml(config), text);
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  train_step.step({make_dataset(dataset_options(config))->training_batch(0)}, 1, 1e-3);
  EXPECT_EQ(to_yaml(config), text);
  EXPECT_EQ(again(text), text);
}

TEST(TrainConfigTest, MissingFileIsAConfigError) {
  EXPECT_THROW(load_train_config("nowhere/config.yaml"), ConfigError);
}

// A config need not write the type that is the default: another one replaces it all the same.
TEST(TrainConfigTest, AnotherTypeThanTheDefaultHasItsOwnDefaults) {
  const testing::TempFolder folder;
  std::string text = testing::tiny_config();
  text.erase(text.find("type: cosine, "), std::string("type: cosine, ").size());
  std::ofstream(folder / "tiny.yaml") << text;
  std::ofstream(folder / "lion.yaml") << "base: tiny.yaml\noptimizer: {type: lion}\nschedule: {min_lr: 0}\n";
  const auto load = [&](const std::string& file, const std::vector<std::string>& overrides) {
    return load_train_config((folder / file).string(), overrides);
  };
  EXPECT_EQ(load("tiny.yaml", {"optimizer.type=lion", "schedule.min_lr=0"}).optimizer.lr, 1e-4);
  EXPECT_EQ(load("lion.yaml", {}).optimizer.lr, 1e-4);
  EXPECT_EQ(load("tiny.yaml", {"optimizer.type=lion", "optimizer.lr=0.5"}).optimizer.lr, 0.5);
  EXPECT_EQ(load("tiny.yaml", {"optimizer.type=adamw"}).optimizer.lr, 3e-3);
  EXPECT_EQ(load("tiny.yaml", {"schedule.type=constant"}).schedule.warmup_steps, 0);
  EXPECT_EQ(load("tiny.yaml", {"schedule.type=cosine"}).schedule.warmup_steps, 5);
}

TEST(TrainConfigTest, ASampleOfTheBaseCanBeTakenAway) {
  const std::vector<std::string> overrides = {"trainer.sample=null"};
  const TrainConfig config = read_train_config(parse_config(good_config(), "config", overrides));
  EXPECT_FALSE(config.trainer.sample.has_value());
  EXPECT_FALSE(read_train_config(parse_config(to_yaml(config))).trainer.sample.has_value());
}

// A pattern takes the place of a mixer of one type, and the other way round; a pattern without kinds keeps the kinds.
TEST(TrainConfigTest, APatternReplacesATypeAndATypeAPattern) {
  const std::string pattern =
      "model.mixer={pattern: [a, b], kinds: {a: {type: retention, heads: 2}, b: {type: softmax_attention, heads: 4}}}";
  const std::string text = to_yaml(testing::tiny_train_config({pattern}));
  EXPECT_THAT(text, HasSubstr("    pattern: [a, b]\n    kinds:\n      a:\n        type: retention\n"));
  EXPECT_EQ(again(text), text);
  const auto mixer = [&](const std::string& override) {
    return read_train_config(parse_config(text, "config", std::vector<std::string>{override})).model.mixer;
  };
  EXPECT_EQ(mixer("model.mixer={type: simple_gla, heads: 2}").of_layer(1).type, "simple_gla");
  const MixerPattern turned = mixer("model.mixer.pattern=[b, b, a]");
  EXPECT_EQ(turned.of_layer(1).type, "softmax_attention");
  EXPECT_EQ(turned.of_layer(2).type, "retention");
  EXPECT_EQ(turned.of_layer(4).type, "softmax_attention");
  EXPECT_THROW(mixer("model.mixer.pattern=[b, c, a]"), ConfigError);
  EXPECT_THROW(mixer("model.mixer.pattern=[b]"), ConfigError);
}

TEST(TrainConfigTest, AKindOfTheBaseCanBeTakenAway) {
  const std::string both =
      "model.mixer={pattern: [a, b], kinds: {a: {type: retention, heads: 2}, b: {type: softmax_attention, heads: 4}}}";
  const MixerPattern left =
      testing::tiny_train_config({both, "model.mixer.kinds.b=null", "model.mixer.pattern=[a]"}).model.mixer;
  ASSERT_EQ(left.kinds.size(), 1u);
  EXPECT_EQ(left.kinds[0].first, "a");
  try {
    testing::tiny_train_config({both, "model.mixer.kinds.b=null"});
    ADD_FAILURE() << "the pattern names a kind that is gone";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.message(), HasSubstr("model.mixer.pattern: found 'b', expected one of a"));
  }
}

// Readers of YAML 1.1 would take these names for a boolean, numbers, a date.
TEST(TrainConfigTest, NamesOfKindsStayText) {
  for (const std::string name : {"on", "yes", "1", "0x10", ".nan", "2024-01-01", "~", "a: b"}) {
    const std::string text = to_yaml(testing::tiny_train_config(
        {"model.mixer={pattern: ['" + name + "'], kinds: {'" + name + "': {type: retention, heads: 2}}}"}));
    EXPECT_THAT(text, HasSubstr("    kinds:\n      \"" + name + "\":\n"));
    EXPECT_EQ(again(text), text);
  }
}

// What the config of a run could not hold.
TEST(TrainConfigTest, TextThatCannotBeWrittenIsRefused) {
  for (const std::string set : {"data.path=b\xff.txt", "data.path=*\xff.txt", "data={type: text, path: \"b\xff\"}",
                                "trainer.sample.prompt=\xe4", "data.path=\"a\\uffff\""}) {
    try {
      read_train_config(parse_config(good_config(), "good.yaml", std::vector{set}));
      ADD_FAILURE() << "accepted " << set;
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.location().to_string(), "--set " + set);
      EXPECT_THAT(error.message(), HasSubstr("found bytes that are no UTF-8"));
    }
  }
  for (const std::string path : {"\u00e4.txt", "---", "\x7f", "\U0001f600"}) {
    const std::vector<std::string> set = {"data.path=\"" + path + "\""};
    EXPECT_EQ(read_train_config(parse_config(good_config(), "good.yaml", set)).data.path, path);
  }
}

TEST(TrainConfigTest, ShippedConfigsAreGoodAndSurviveWriting) {
  int count = 0;
  std::vector<fs::path> paths = testing::model_configs();
  for (const char* folder : {"configs", "configs/recall"}) {
    for (const auto& entry : fs::directory_iterator(fs::path(HEDDLE_SOURCE_DIR) / folder)) {
      const std::string name = entry.path().filename().string();
      if (entry.is_regular_file() && name.find("base.") == std::string::npos) paths.push_back(entry.path());
    }
  }
  for (const fs::path& path : paths) {
    const std::string text = to_yaml(load_train_config(path.string()));
    EXPECT_EQ(again(text), text) << path;
    ++count;
  }
  EXPECT_GE(count, 3 + 3 + 12);
}

}  // namespace
}  // namespace heddle::train_config_test
