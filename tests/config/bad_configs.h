// Bad training configs and the error each must give: one table for the reader and for the command line (exit code 2).
#pragma once

#include <filesystem>
#include <fstream>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace heddle::testing {

// A good config; a bad one replaces some of its lines, so that a place in the table is easy to find.
inline const std::vector<std::string>& good_config_lines() {
  static const std::vector<std::string> lines = {
      /*  1 */ "seed: 1",
      /*  2 */ "data: {type: text, path: text.txt, validation_fraction: 0.1}",
      /*  3 */ "model:",
      /*  4 */ "  vocab_size: 256",
      /*  5 */ "  dim: 16",
      /*  6 */ "  layers: 2",
      /*  7 */ "  norm: {type: srms_norm, eps: 1.0e-6}",
      /*  8 */ "  mixer: {type: lightning, heads: 2, act: silu}",
      /*  9 */ "  channel: {type: glu, hidden: 32, act: silu}",
      /* 10 */ "optimizer: {type: adamw, lr: 3.0e-3, betas: [0.9, 0.95]}",
      /* 11 */ "schedule:",
      /* 12 */ "  type: cosine",
      /* 13 */ "  warmup_steps: 10",
      /* 14 */ "trainer:",
      /* 15 */ "  steps: 100",
      /* 16 */ "  batch_size: 2",
      /* 17 */ "  sequence_length: 64",
      /* 18 */ "  sample: {prompt: a, tokens: 20}",
  };
  return lines;
}

struct BadConfig {
  std::string name;
  std::vector<std::pair<int, std::string>> lines;  // line number (from 1) and its new text
  std::string location;                            // "FILE:LINE:COL" or "--set ..."; FILE relative to the folder
  std::string message;                             // a part of the message
  std::vector<std::string> overrides = {};         // of --set
  std::vector<std::pair<std::string, std::string>> other_files = {};
};

inline void PrintTo(const BadConfig& bad, std::ostream* out) { *out << bad.name; }

// Writes the files of `bad` into `folder`; the config itself is config.yaml.
inline std::filesystem::path write_bad_config(const BadConfig& bad, const std::filesystem::path& folder) {
  std::vector<std::string> lines = good_config_lines();
  for (const auto& [number, text] : bad.lines) lines.at(number - 1) = text;
  std::filesystem::create_directories(folder);
  std::ofstream config(folder / "config.yaml");
  for (const std::string& line : lines) config << line << '\n';
  for (const auto& [name, text] : bad.other_files) std::ofstream(folder / name) << text;
  std::ofstream(folder / "text.txt") << "In the beginning\n";
  return folder / "config.yaml";
}

inline std::vector<BadConfig> bad_configs() {
  return {
      // Not YAML, or YAML that could be misread.
      {"UnclosedList", {{10, "optimizer: {betas: [0.9, 0.95}"}}, "config.yaml:10:30", "not valid YAML"},
      {"UnclosedQuote", {{18, "  sample: {prompt: \"a"}}, "config.yaml:19:2", "illegal EOF in scalar"},
      {"TwoColons", {{12, "  type: cosine: 3"}}, "config.yaml:12:15", "illegal map value"},
      {"BadIndentation", {{5, " dim: 16"}}, "config.yaml:5:2", "not valid YAML"},
      {"UndefinedAlias", {{5, "  dim: *width"}}, "config.yaml:5:8", "the referenced anchor is not defined"},
      {"DuplicateKey", {{16, "  steps: 200"}}, "config.yaml:16:3", "duplicate key 'steps', first given at"},
      {"DuplicateKeyInFlowMap",
       {{2, "data: {type: text, path: a, path: b}"}},
       "config.yaml:2:29",
       "duplicate key 'path'"},
      {"DuplicateSection", {{14, "schedule:"}}, "config.yaml:14:1", "duplicate key 'schedule'"},
      {"Tag", {{5, "  dim: !!int 16"}}, "config.yaml:5:8", "tag"},
      {"MergeKey", {{12, "  <<: {type: cosine}"}}, "config.yaml:12:3", "use 'base: FILE'"},
      {"ListAsKey", {{13, "  [a, b]: 10"}}, "config.yaml:13:3", "expected a name"},
      {"SecondDocument", {{1, "---\nseed: 1\n---"}}, "config.yaml:4:1", "second YAML document"},
      // Unknown keys.
      {"UnknownSection", {{11, "shedule:"}}, "config.yaml:11:1", "unknown key 'shedule'; did you mean 'schedule'?"},
      {"UnknownSectionFarFromAll", {{1, "wheels: 4"}}, "config.yaml:1:1", "unknown key 'wheels', expected one of"},
      {"UnknownInSchedule",
       {{13, "  warmup: 10"}},
       "config.yaml:13:3",
       "unknown key 'warmup' in schedule; did you mean 'warmup_steps'?"},
      {"UnknownInTrainer",
       {{16, "  batchsize: 2"}},
       "config.yaml:16:3",
       "unknown key 'batchsize' in trainer; did you mean 'batch_size'?"},
      {"UnknownInData",
       {{2, "data: {type: text, path: a, validation_fractoin: 0.1}"}},
       "config.yaml:2:29",
       "unknown key 'validation_fractoin' in data; did you mean 'validation_fraction'?"},
      {"UnknownInModel",
       {{6, "  layers: 2\n  tie_embedding: true"}},
       "config.yaml:7:3",
       "unknown key 'tie_embedding' in model; did you mean 'tie_embeddings'?"},
      {"UnknownInOptimizer",
       {{10, "optimizer: {lr: 3.0e-3, wieght_decay: 0.1}"}},
       "config.yaml:10:25",
       "unknown key 'wieght_decay' in optimizer; did you mean 'weight_decay'?"},
      {"UnknownInSample",
       {{18, "  sample: {prompt: a, temprature: 0.5}"}},
       "config.yaml:18:23",
       "unknown key 'temprature' in trainer.sample; did you mean 'temperature'?"},
      {"KeyOfAnotherDataType",
       {{2, "data: {type: text, path: a, num_pairs: 3}"}},
       "config.yaml:2:29",
       "unknown key 'num_pairs' in data"},
      {"MinLrOfConstantSchedule",
       {{12, "  type: constant\n  min_lr: 0.1"}},
       "config.yaml:13:3",
       "unknown key 'min_lr' in schedule"},
      // Missing keys.
      {"MissingSection",
       {{14, ""}, {15, ""}, {16, ""}, {17, ""}, {18, ""}},
       "config.yaml:1:1",
       "missing key 'trainer'"},
      {"MissingKey", {{15, ""}}, "config.yaml:14:1", "missing key 'steps' in trainer, expected an integer > 0"},
      {"MisspeltRequiredKey", {{15, "  step: 100"}}, "config.yaml:14:1", "is 'step' at"},
      {"MissingLayer", {{8, ""}}, "config.yaml:3:1", "missing key 'mixer' in model"},
      {"MissingType",
       {{2, "data: {path: a}"}},
       "config.yaml:2:1",
       "missing key 'type' in data, expected one of text, tokens, mqar, copy"},
      {"MissingPath", {{2, "data: {type: tokens}"}}, "config.yaml:2:1", "missing key 'path' in data, expected text"},
      {"KeyWithoutValue",
       {{15, "  steps:"}},
       "config.yaml:15:3",
       "trainer.steps: found nothing, expected an integer > 0"},
      {"EmptySection",
       {{15, ""}, {16, ""}, {17, ""}, {18, ""}},
       "config.yaml:14:1",
       "trainer: found nothing, expected a map"},
      // Wrong types.
      {"TextForInteger",
       {{15, "  steps: abc"}},
       "config.yaml:15:10",
       "trainer.steps: found 'abc', expected an integer"},
      {"FractionForInteger", {{16, "  batch_size: 2.5"}}, "config.yaml:16:15", "found '2.5', expected an integer"},
      {"ExponentForInteger", {{15, "  steps: 1e6"}}, "config.yaml:15:10", "found '1e6', expected an integer"},
      {"QuotedInteger", {{15, "  steps: \"100\""}}, "config.yaml:15:10", "in quotes (text), expected an integer"},
      {"IntegerTooLarge", {{15, "  steps: 99999999999999999999"}}, "config.yaml:15:10", "expected an integer"},
      {"NegativeSeed", {{1, "seed: -1"}}, "config.yaml:1:7", "seed: found '-1', expected a non-negative integer"},
      {"TextForNumber",
       {{10, "optimizer: {lr: fast}"}},
       "config.yaml:10:17",
       "optimizer.lr: found 'fast', expected a number > 0"},
      {"NotANumber", {{10, "optimizer: {lr: .nan}"}}, "config.yaml:10:17", "found '.nan', expected a number"},
      {"YesForTrue",
       {{4, "  vocab_size: 256\n  tie_embeddings: yes"}},
       "config.yaml:5:19",
       "found 'yes', expected true or false"},
      {"NumberForList",
       {{10, "optimizer: {betas: 0.9}"}},
       "config.yaml:10:20",
       "optimizer.betas: found '0.9', expected a list"},
      {"TextInList",
       {{10, "optimizer: {betas: [0.9, x]}"}},
       "config.yaml:10:26",
       "optimizer.betas.1: found 'x', expected a number in [0, 1)"},
      {"TextForSection", {{10, "optimizer: adamw"}}, "config.yaml:10:12", "optimizer: found 'adamw', expected a map"},
      {"MapForNumber", {{5, "  dim: {size: 3}"}}, "config.yaml:5:8", "model.dim: found a map, expected an integer"},
      {"ListAtTop", {{1, "- 1\n- 2\n---"}}, "config.yaml:4:1", "second YAML document"},
      // Names.
      {"MisspeltSchedule",
       {{12, "  type: cosin"}},
       "config.yaml:12:9",
       "schedule.type: found 'cosin', expected one of cosine, linear, constant; did you mean 'cosine'?"},
      {"MisspeltData", {{2, "data: {type: txt, path: a}"}}, "config.yaml:2:14", "did you mean 'text'?"},
      {"UnknownOptimizer", {{10, "optimizer: {type: sgd}"}}, "config.yaml:10:19", "found 'sgd', expected one of adamw"},
      {"BadDtype",
       {{16, "  dtype: bf16"}},
       "config.yaml:16:10",
       "trainer.dtype: found 'bf16', expected one of float64, float32, bfloat16, float16"},
      {"IntegerDtype", {{16, "  dtype: int32"}}, "config.yaml:16:10", "found 'int32', expected one of float64"},
      // Out of range, alone or against another key.
      {"ZeroSteps", {{15, "  steps: 0"}}, "config.yaml:15:10", "found '0', expected an integer > 0"},
      {"NegativeBatch", {{16, "  batch_size: -2"}}, "config.yaml:16:15", "found '-2', expected an integer > 0"},
      {"FractionOfOne",
       {{2, "data: {type: text, path: a, validation_fraction: 1.0}"}},
       "config.yaml:2:50",
       "data.validation_fraction: found '1.0', expected a number in (0, 1)"},
      {"BetaOfOne",
       {{10, "optimizer: {betas: [0.9, 1.0]}"}},
       "config.yaml:10:26",
       "found '1.0', expected a number in [0, 1)"},
      {"ThreeBetas",
       {{10, "optimizer: {betas: [0.9, 0.9, 0.9]}"}},
       "config.yaml:10:20",
       "optimizer.betas: found a list of 3, expected two numbers"},
      {"SmallVocabulary", {{4, "  vocab_size: 100"}}, "config.yaml:4:15", "expected at least 256"},
      {"WarmupLongerThanTraining",
       {{13, "  warmup_steps: 101"}},
       "config.yaml:13:17",
       "schedule.warmup_steps: found 101, expected at most trainer.steps (100)"},
      {"MinLrAboveLr",
       {{13, "  min_lr: 0.1"}},
       "config.yaml:13:11",
       "schedule.min_lr: found 0.1, expected at most optimizer.lr (0.003)"},
      {"PairsDoNotFit",
       {{2, "data: {type: mqar, num_pairs: 20}"}},
       "config.yaml:2:31",
       "need trainer.sequence_length >= 80, found 64"},
      {"MoreQueriesThanPairs",
       {{2, "data: {type: mqar, num_pairs: 2, num_queries: 3}"}},
       "config.yaml:2:47",
       "data.num_queries: found '3', expected an integer in [1, 2]"},
      {"PairsWithoutKeys",
       {{2, "data: {type: mqar, num_pairs: 8}"}, {4, "  vocab_size: 16"}},
       "config.yaml:2:31",
       "expected less than 8, half of model.vocab_size"},
      {"CopyDoesNotFit",
       {{2, "data: {type: copy, length: 33}"}},
       "config.yaml:2:28",
       "data.length: found 33, expected at most half of trainer.sequence_length (64)"},
      {"SampleOfCopyTask", {{2, "data: {type: copy, length: 8}"}}, "config.yaml:18:11", "only data.type text"},
      {"EmptyPrompt", {{18, "  sample: {prompt: \"\"}"}}, "config.yaml:18:20", "found an empty prompt"},
      // base: and --set.
      {"MissingBase", {{1, "base: nowhere.yaml"}}, "config.yaml:1:7", "cannot read"},
      {"BaseIsAFolder", {{1, "base: ."}}, "config.yaml:1:7", "it is a folder"},
      {"BaseIsAList", {{1, "base: [a, b]"}}, "config.yaml:1:7", "expected the name of another config file"},
      {"BaseIncludesItself", {{1, "base: config.yaml"}}, "config.yaml:1:7", "includes itself"},
      {"BasesInACircle",
       {{1, "base: other.yaml"}},
       "other.yaml:2:7",
       "includes itself",
       {},
       {{"other.yaml", "seed: 3\nbase: config.yaml\n"}}},
      {"ErrorInBase",
       {{1, "base: other.yaml"}},
       "other.yaml:2:15",
       "trainer.accumulate: found 'x'",
       {},
       {{"other.yaml", "trainer:\n  accumulate: x\n"}}},
      {"SyntaxErrorInBase",
       {{1, "base: other.yaml"}},
       "other.yaml:1:5",
       "not valid YAML",
       {},
       {{"other.yaml", "a: b: c\n"}}},
      {"OverrideWithoutValue", {}, "--set seed", "expected --set KEY=VALUE", {"seed"}},
      {"OverrideWithoutKey", {}, "--set =3", "found an empty name", {"=3"}},
      {"OverrideWithEmptyName", {}, "--set trainer..steps=3", "found an empty name", {"trainer..steps=3"}},
      {"OverrideUnknown",
       {},
       "--set trainer.step=3",
       "unknown key 'step' in trainer; did you mean 'steps'?",
       {"trainer.step=3"}},
      {"OverrideUnknownSection", {}, "--set optimiser.lr=3", "did you mean 'optimizer'?", {"optimiser.lr=3"}},
      {"OverrideBelowAScalar",
       {},
       "--set seed.value=3",
       "seed: found a map, expected a non-negative integer",
       {"seed.value=3"}},
      {"OverrideWrongType",
       {},
       "--set trainer.steps=many",
       "trainer.steps: found 'many', expected an integer",
       {"trainer.steps=many"}},
      {"OverrideIndexTooLarge",
       {},
       "--set optimizer.betas.2=0.5",
       "found index '2', expected less than 2",
       {"optimizer.betas.2=0.5"}},
      {"OverrideIndexNotANumber",
       {},
       "--set optimizer.betas.first=0.5",
       "found index 'first'",
       {"optimizer.betas.first=0.5"}},
      {"OverrideNotYaml", {}, "--set trainer.sample={prompt: \"a", "not valid YAML", {"trainer.sample={prompt: \"a"}},
      {"OverrideBase", {}, "--set base=other.yaml", "base cannot be overridden", {"base=other.yaml"}},
      {"OverrideOutOfRange",
       {},
       "--set schedule.warmup_steps=200",
       "expected at most trainer.steps (100)",
       {"schedule.warmup_steps=200"}},
  };
}

}  // namespace heddle::testing
