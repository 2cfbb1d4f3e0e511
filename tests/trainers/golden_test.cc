// Whole runs held to what they once gave: the files of tests/golden, whose README.md says how they are made.
#include "tests/trainers/golden.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <istream>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"
#include "trainers/schedule.h"
#include "trainers/trainer.h"

namespace heddle::golden_test {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;
using testing::golden_folder;
using testing::new_golden_folder;

constexpr double kTolerance = 1e-12;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kMiddleStep = 11;  // after the warm-up, and no multiple of anything else
constexpr int64_t kLastStep = 20;

fs::path text_file() { return golden_folder() / "text.txt"; }

struct CurveRow {
  int64_t step = 0;
  double loss = kNone, gradient_norm = kNone, learning_rate = kNone;
  double validation_loss = kNone, validation_accuracy = kNone;
};

struct GoldenRun {
  std::string name;
  std::string config;  // configs/CONFIG.yaml
  Strings overrides;

  friend std::ostream& operator<<(std::ostream& stream, const GoldenRun& run) { return stream << run.name; }
};

// The numbers must not depend on the CPU by more than kTolerance. Rounding errors grow from step to step, at the
// learning rates of the toys by more than a thousandfold in 20 steps, so the rate here is small. They also differ
// between seeds: of those tried, the runs below have seeds with which two builds, one with the instructions of its CPU
// and one without, differ by less than a tenth of kTolerance. A larger eps is only a precaution.
Strings common_overrides() {
  return {"trainer.dtype=float64",
          fmt::format("trainer.steps={}", kLastStep),
          fmt::format("trainer.checkpoint_every={}", kMiddleStep),
          "trainer.keep_best=false",
          "trainer.accumulate=2",
          "trainer.batch_size=3",
          "trainer.eval_every=6",
          "trainer.eval_batches=3",
          "schedule.warmup_steps=5",
          "model.dim=16",
          "model.layers=2",
          "model.channel.hidden=24"};
}

// Of the runs that name no optimizer.
Strings adamw_overrides() {
  return {"optimizer.lr=1.0e-4", "optimizer.betas=[0.83, 0.971]", "optimizer.eps=1.0e-6",
          "optimizer.weight_decay=0.13"};
}

// With an average of the weights, which is what the validation losses of the curve are of.
GoldenRun optimizer_run(const std::string& name, int seed, const std::string& optimizer, const std::string& schedule) {
  return {
      name,
      "toy_copy",
      {fmt::format("seed={}", seed), "data.length=8", "trainer.sequence_length=18", "model.mixer.heads=2",
       "model.mixer.gate.rank=4", "trainer.ema=0.9", "optimizer={" + optimizer + "}", "schedule={" + schedule + "}"}};
}

// On the task with the smallest vocabulary, so that the files are small.
GoldenRun mixer_run(const std::string& name, int seed, double clip_norm, const std::string& mixer) {
  return {
      name,
      "toy_copy",
      {fmt::format("seed={}", seed), "schedule.min_lr=1.0e-5", "data.length=8", "trainer.sequence_length=18",
       fmt::format("optimizer.clip_norm={}", clip_norm), "model.norm={type: rms_norm}", "model.mixer={" + mixer + "}"}};
}

std::vector<GoldenRun> golden_runs() {
  const std::string text = fmt::format("data.path='{}'", text_file().string());
  return {
      // An evaluation reads all of the validation text, the last of its windows shorter than the others.
      {"toy_kjv",
       "toy_kjv",
       {"seed=7", "schedule.min_lr=1.0e-5", text, "data.validation_fraction=0.07", "trainer.sequence_length=32",
        "trainer.eval_batches=100", "trainer.sample.tokens=100", "optimizer.clip_norm=23.2", "model.mixer.heads=2",
        "model.mixer.gate.rank=4"}},
      {"toy_copy",
       "toy_copy",
       {"seed=5", "schedule.min_lr=1.0e-5", "data.length=8", "trainer.sequence_length=18", "optimizer.clip_norm=47.0",
        "model.mixer.heads=2", "model.mixer.gate.rank=4"}},
      {"toy_mqar",
       "toy_mqar",
       {"seed=19", "schedule.min_lr=1.0e-5", "optimizer.clip_norm=66.0", "model.mixer.heads=2",
        "model.mixer.gate.rank=4"}},
      // What the toys leave out. The vectors, norm weights and angles, get no weight decay.
      {"variant",
       "toy_kjv",
       {"seed=12", text, "trainer.sequence_length=24", "trainer.sample=null", "optimizer.clip_norm=1.9",
        "model.tie_embeddings=true", "model.mixer.heads=2", "model.norm={type: rms_norm, eps: 1.0e-6, weight: true}",
        "model.channel={type: ffn, act: silu}", "model.mixer.lrpe={type: lrpe_cosine, learnable: true, per_head: true}",
        "model.mixer.gate={act: silu, position: pre, rank: 0}", "schedule={type: linear, min_lr: 1.0e-5}"}},
      {"constant",
       "toy_copy",
       {"seed=7", "data.length=8", "trainer.sequence_length=18", "optimizer.lr=1.0e-5", "optimizer.clip_norm=95.5",
        "model.norm={type: group_norm, groups: 4, eps: 1.0e-4}", "model.mixer.heads=2", "model.mixer.gate=null",
        "schedule={type: constant, warmup_steps: 5}"}},
      optimizer_run("lion", 3, "type: lion, lr: 1.0e-4, betas: [0.83, 0.971], weight_decay: 0.13, clip_norm: 47",
                    "type: wsd, min_lr: 1.0e-5, decay_steps: 8"),
      optimizer_run("sgd", 3,
                    "type: sgd, lr: 1.0e-4, momentum: 0.83, nesterov: true, weight_decay: 0.13, clip_norm: 47",
                    "type: wsd, decay_fraction: 0.4, decay_shape: sqrt"),
      optimizer_run("muon", 3,
                    "type: muon, lr: 1.0e-3, weight_decay: 0.13, clip_norm: 47, adamw: {lr: 1.0e-4, betas: [0.83, "
                    "0.971], eps: 1.0e-6}, groups: [{pattern: '*.mixer.*', lr_scale: 0.5}]",
                    "type: cosine, min_lr: 1.0e-5"),
      mixer_run("linear_attention", 4, 17.0,
                "type: linear_attention, heads: 4, kv_heads: 2, lrpe: {type: lrpe_rotate}"),
      mixer_run("retention", 15, 47.0, "type: retention, heads: 2"),
      mixer_run("simple_gla", 8, 48.0, "type: simple_gla, heads: 2, divisor: 4.0"),
      mixer_run("softmax_attention", 16, 18.5, "type: softmax_attention, heads: 4, kv_heads: 2, window: 9"),
      // A sample, so with the states of both mixers.
      {"pattern",
       "toy_kjv",
       {"seed=15", "schedule.min_lr=1.0e-5", text, "trainer.sequence_length=24", "trainer.sample.tokens=40",
        "optimizer.clip_norm=3.1", "model.tie_embeddings=true", "model.layers=3",
        "model.mixer={pattern: [linear, softmax], kinds: {linear: {type: lightning, heads: 2, lrpe: {type: "
        "lrpe_rotate, layers: [2]}, gate: {rank: 4}}, softmax: {type: softmax_attention, heads: 4}}}"}},
  };
}

TrainConfig config_of(const GoldenRun& run, const Strings& more = {}) {
  Strings overrides = common_overrides();
  const bool has_optimizer = std::any_of(run.overrides.begin(), run.overrides.end(),
                                         [](const std::string& set) { return set.starts_with("optimizer="); });
  if (const Strings adamw = adamw_overrides(); !has_optimizer) {
    overrides.insert(overrides.end(), adamw.begin(), adamw.end());
  }
  overrides.insert(overrides.end(), run.overrides.begin(), run.overrides.end());
  overrides.insert(overrides.end(), more.begin(), more.end());
  return load_train_config(fmt::format("{}/configs/{}.yaml", HEDDLE_SOURCE_DIR, run.config), overrides);
}

// Relative, with equal zeros and equal absences as no difference, and as an endless one what only one side has.
double difference(double found, double expected) {
  if (found == expected || (std::isnan(found) && std::isnan(expected))) return 0.0;
  const double relative = std::abs(found - expected) / std::abs(expected);
  return std::isnan(relative) ? INFINITY : relative;
}

// Of two tensors: the largest difference of two numbers, relative to the largest number.
double difference(const std::vector<double>& found, const std::vector<double>& expected) {
  if (found.size() != expected.size()) return INFINITY;
  double largest = 0.0, apart = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double here = std::abs(found[i] - expected[i]);
    if (std::isnan(here)) return INFINITY;
    apart = std::max(apart, here);
    largest = std::max(largest, std::abs(expected[i]));
  }
  return apart == 0.0 ? 0.0 : apart / largest;
}

// A table of numbers by the names of its columns, so that a column more does no harm.
using Rows = std::vector<std::map<std::string, std::string>>;

Rows read_rows(const fs::path& path) {
  const auto split = [](const std::string& line) {
    Strings fields(1);
    for (const char c : line) {
      if (c == ',') {
        fields.emplace_back();
      } else {
        fields.back() += c;
      }
    }
    return fields;
  };
  std::istringstream text(read_file(path));
  std::string line;
  std::getline(text, line);
  const Strings names = split(line);
  Rows rows;
  while (std::getline(text, line)) {
    const Strings fields = split(line);
    auto& row = rows.emplace_back();
    for (size_t i = 0; i < std::min(names.size(), fields.size()); ++i) row[names[i]] = fields[i];
  }
  return rows;
}

double number(const std::string& field) { return field.empty() ? kNone : std::strtod(field.c_str(), nullptr); }

// The columns of a curve beside the step.
const std::vector<std::pair<std::string, double CurveRow::*>>& columns() {
  static const std::vector<std::pair<std::string, double CurveRow::*>> all = {
      {"loss", &CurveRow::loss},
      {"gradient_norm", &CurveRow::gradient_norm},
      {"learning_rate", &CurveRow::learning_rate},
      {"validation_loss", &CurveRow::validation_loss},
      {"validation_accuracy", &CurveRow::validation_accuracy}};
  return all;
}

std::string field(double value, int digits) { return std::isnan(value) ? "" : fmt::format("{:.{}g}", value, digits); }

void write_curve(const fs::path& path, const std::vector<CurveRow>& curve) {
  std::string text = "step";
  for (const auto& [name, member] : columns()) text += fmt::format(",{}", name);
  for (const CurveRow& row : curve) {
    text += fmt::format("\n{}", row.step);
    for (const auto& [name, member] : columns()) text += fmt::format(",{}", field(row.*member, 17));
  }
  fs::create_directories(path.parent_path());
  write_file(path, text + "\n");
}

void expect_curve(const std::vector<CurveRow>& found, const fs::path& path) {
  const Rows expected = read_rows(path);
  ASSERT_EQ(found.size(), expected.size()) << path;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(std::to_string(found[i].step), expected[i].at("step"));
    for (const auto& [name, member] : columns()) {
      const double apart = difference(found[i].*member, number(expected[i].at(name)));
      EXPECT_LE(apart, kTolerance) << name << " of step " << found[i].step << " is " << field(found[i].*member, 17)
                                   << ", expected " << expected[i].at(name);
    }
  }
}

void expect_same_tensors(const fs::path& found_path, const fs::path& expected_path) {
  Context context(Device{}, {.threads = 1});
  SafetensorsReader found(found_path), expected(expected_path);
  const auto names = [](const SafetensorsReader& reader) {
    std::set<std::string> all;
    for (const SafetensorsEntry& entry : reader.entries()) all.insert(entry.name);
    return all;
  };
  ASSERT_EQ(names(found), names(expected)) << expected_path;
  for (const SafetensorsEntry& entry : expected.entries()) {
    const SafetensorsEntry& other = found.at(entry.name);
    EXPECT_EQ(other.dtype, entry.dtype) << entry.name;
    EXPECT_EQ(other.shape, entry.shape) << entry.name;
    const double apart = difference(read_values(context, found.read(context, other)),
                                    read_values(context, expected.read(context, entry)));
    EXPECT_LE(apart, kTolerance) << entry.name << " of " << expected_path;
  }
}

const Strings& checkpoint_files() {
  static const Strings files = {"model.safetensors", "optimizer.safetensors"};
  return files;
}

std::string step_folder(int64_t step) { return fmt::format("step_{}", step); }

// Takes the steps first .. last by what the trainer itself is made of, and evaluates where it does.
std::vector<CurveRow> take_steps(Context& context, const TrainConfig& config, TrainStep& train_step, int64_t first,
                                 int64_t last) {
  const auto data = make_dataset(dataset_options(config));
  std::vector<CurveRow> curve;
  for (int64_t step = first; step <= last; ++step) {
    CurveRow& row = curve.emplace_back();
    row.step = step;
    row.learning_rate = learning_rate(config, step);
    const StepResult taken = train_step.step(testing::batches_of_step(*data, config, step), step, row.learning_rate);
    row.loss = taken.loss;
    row.gradient_norm = taken.gradient_norm;
    if (step % config.trainer.eval_every != 0 && step != config.trainer.steps) continue;
    const Evaluation evaluation =
        with_averaged_weights(train_step.average(), [&] { return evaluate(context, train_step.model(), *data); });
    row.validation_loss = evaluation.loss;
    row.validation_accuracy = evaluation.accuracy;
  }
  return curve;
}

// The files of a checkpoint, for the comparison with others.
void write_tensors(Context& context, const fs::path& folder, TrainStep& train_step) {
  std::vector<NamedTensor> masters;
  for (const Parameter& parameter : train_step.model().parameters().all()) {
    masters.push_back({parameter.name, parameter.master});
  }
  fs::create_directories(folder);
  write_safetensors(context, folder / checkpoint_files()[0], masters);
  write_safetensors(context, folder / checkpoint_files()[1], train_step.optimizer().state());
}

class GoldenTest : public ::testing::TestWithParam<GoldenRun> {
 protected:
  // What train() gives, its files in the folder `run`.
  TrainResult train_whole(const TrainConfig& config) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / "run";
    options.log = std::fopen((folder_ / "log").c_str(), "w");
    const TrainResult result = train(context, config, options);
    std::fclose(options.log);
    return result;
  }
  fs::path checkpoints() const { return folder_.path() / "run" / "checkpoints"; }
  static fs::path golden() { return golden_folder() / GetParam().name; }

  testing::TempFolder folder_;
};

TEST_P(GoldenTest, TrainWritesTheCheckpoints) {
  SCOPED_TRACE(testing::kGoldenFailure);
  const TrainResult result = train_whole(config_of(GetParam()));
  EXPECT_TRUE(result.finished);
  std::set<std::string> steps;
  for (const auto& entry : fs::directory_iterator(checkpoints())) steps.insert(entry.path().filename().string());
  EXPECT_EQ(steps, (std::set<std::string>{step_folder(kMiddleStep), step_folder(kLastStep)}));

  if (const fs::path folder = new_golden_folder(); !folder.empty()) {
    for (const std::string& step : steps) {
      fs::create_directories(folder / GetParam().name / step);
      for (const std::string& file : checkpoint_files()) {
        write_file(folder / GetParam().name / step / file, read_file(checkpoints() / step / file));
      }
    }
    if (!result.sample.empty()) write_file(folder / GetParam().name / "sample.txt", result.sample);
    return;
  }
  for (const std::string& step : steps) {
    for (const std::string& file : checkpoint_files()) {
      expect_same_tensors(checkpoints() / step / file, golden() / step / file);
    }
  }
  const fs::path sample = golden() / "sample.txt";
  EXPECT_EQ(result.sample, fs::exists(sample) ? read_file(sample) : "");
}

TEST_P(GoldenTest, TheCurveIsThatOfTrain) {
  SCOPED_TRACE(testing::kGoldenFailure);
  const TrainConfig config = config_of(GetParam());
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const std::vector<CurveRow> curve = take_steps(context, config, train_step, 1, kLastStep);

  if (const fs::path folder = new_golden_folder(); !folder.empty()) {
    write_curve(folder / GetParam().name / "curve.csv", curve);
  } else {
    expect_curve(curve, golden() / "curve.csv");
  }

  // The run says something about clipping only where some steps clip and some do not.
  const auto clips = [&](const CurveRow& row) { return row.gradient_norm > config.optimizer.clip_norm; };
  EXPECT_TRUE(std::any_of(curve.begin(), curve.end(), clips));
  EXPECT_FALSE(std::all_of(curve.begin(), curve.end(), clips));

  // train() wrote the same numbers, to the digits of metrics.csv, and ended with the same bits.
  train_whole(config);
  const Rows metrics = read_rows(folder_ / "run" / "metrics.csv");
  ASSERT_EQ(metrics.size(), curve.size());
  for (size_t i = 0; i < curve.size(); ++i) {
    EXPECT_EQ(metrics[i].at("step"), std::to_string(curve[i].step));
    for (const auto& [name, member] : columns()) {
      EXPECT_EQ(metrics[i].at(name), field(curve[i].*member, 9)) << name << " of step " << curve[i].step;
    }
  }
  write_tensors(context, folder_ / "steps", train_step);
  for (const std::string& file : checkpoint_files()) {
    EXPECT_EQ(read_file(folder_ / "steps" / file), read_file(checkpoints() / step_folder(kLastStep) / file)) << file;
  }
}

// A checkpoint of the past is read, and its run ends as it would have then.
TEST_P(GoldenTest, AGoldenCheckpointGoesOn) {
  if (!new_golden_folder().empty()) GTEST_SKIP() << "new golden files are being written";
  SCOPED_TRACE(testing::kGoldenFailure);
  const TrainConfig config = config_of(GetParam());
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const Checkpoint checkpoint{golden() / step_folder(kMiddleStep), {}};
  load_parameters(context, checkpoint, train_step.model().parameters());
  load_optimizer(context, checkpoint, train_step.optimizer());
  take_steps(context, config, train_step, kMiddleStep + 1, kLastStep);
  write_tensors(context, folder_ / "steps", train_step);
  for (const std::string& file : checkpoint_files()) {
    expect_same_tensors(folder_ / "steps" / file, golden() / step_folder(kLastStep) / file);
  }
}

INSTANTIATE_TEST_SUITE_P(Runs, GoldenTest, ::testing::ValuesIn(golden_runs()),
                         [](const auto& run) { return run.param.name; });

// The types that a config may name at `path`, as the message that refuses another one lists them.
std::set<std::string> types_at(const std::string& path) {
  try {
    config_of(golden_runs()[0], {path + "={type: no_such_type}"});
  } catch (const ConfigError& error) {
    const std::string list = "expected one of ", message = error.message();
    const size_t begin = message.find(list) + list.size();
    std::istringstream names(message.substr(begin, message.find(';', begin) - begin));
    std::set<std::string> types;
    for (std::string name; std::getline(names >> std::ws, name, ',');) types.insert(name);
    return types;
  }
  return {};
}

// Adds the values at keys[at] and so on below `value`, in each of its kinds where it has kinds.
void add_values(const ConfigValue& value, const Strings& keys, size_t at, std::set<std::string>& values) {
  if (at == keys.size()) {
    values.insert(value.scalar);
    return;
  }
  if (const ConfigEntry* entry = value.find(keys[at])) add_values(*entry->value, keys, at + 1, values);
  if (const ConfigEntry* kinds = value.find("kinds")) {
    for (const ConfigEntry& kind : kinds->value->entries) add_values(*kind.value, keys, at, values);
  }
}

// Whoever adds a mixer, an optimizer or a schedule adds a run that holds its numbers.
TEST(GoldenRunsTest, CoverEveryTypeThatTrainingKnows) {
  for (const std::string path : {"data", "model.mixer", "model.mixer.lrpe", "model.channel", "optimizer", "schedule"}) {
    std::set<std::string> types = types_at(path);
    EXPECT_FALSE(types.empty()) << path;
    if (path == "data") types.erase("tokens");  // read as text is, and held to it by TheTextIsSplitWithoutOverlap
    Strings keys;
    std::istringstream names(path + ".type");
    for (std::string key; std::getline(names, key, '.');) keys.push_back(key);
    std::set<std::string> covered;
    for (const GoldenRun& run : golden_runs()) add_values(to_tree(config_of(run)), keys, 0, covered);
    for (const std::string& type : covered) types.erase(type);
    EXPECT_TRUE(types.empty()) << path << " has no golden run of type " << ::testing::PrintToString(types);
  }
}

// The rows of a batch that have a target which counts: tokens, then targets.
std::vector<std::vector<int32_t>> sequences_of(const Batch& batch) {
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t row = 0; row < batch.size; ++row) {
    const auto part = [&](const std::vector<int32_t>& numbers) {
      const auto begin = numbers.begin() + row * batch.length;
      return std::vector<int32_t>(begin, begin + batch.length);
    };
    std::vector<int32_t> sequence = part(batch.tokens);
    const std::vector<int32_t> targets = part(batch.targets);
    if (std::count(targets.begin(), targets.end(), kIgnoredTarget) == batch.length) continue;
    sequence.insert(sequence.end(), targets.begin(), targets.end());
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// A file of tokens that are their own positions shows where the windows of a text of that length lie.
TEST(GoldenDataTest, TheTextIsSplitWithoutOverlap) {
  const GoldenRun run = golden_runs()[0];
  const std::string text = read_file(text_file());
  const auto tokens = static_cast<int32_t>(text.size());
  const testing::TempFolder folder;
  const std::string positions =
      testing::write_positions((folder / "positions").string(), static_cast<uint32_t>(tokens), "0.07");
  const auto data = make_dataset(dataset_options(config_of(run)));
  const auto places = make_dataset(
      dataset_options(config_of(run, {positions, "trainer.sample=null", fmt::format("model.vocab_size={}", tokens)})));

  // Marks the positions that the windows reach. Each window is contiguous, and the text is that of its place.
  const auto mark = [&](const Batch& batch, const Batch& place, std::vector<bool>& reached) {
    ASSERT_EQ(batch.size, place.size);
    for (int64_t row = 0; row < place.size; ++row) {
      const int64_t begin = row * place.length;
      const auto is_target = [](int32_t target) { return target != kIgnoredTarget; };
      const int64_t length =
          std::count_if(place.targets.begin() + begin, place.targets.begin() + begin + place.length, is_target);
      ASSERT_GT(length, 0);
      for (int64_t n = begin; n < begin + length; ++n) {
        const int32_t position = place.tokens[begin] + static_cast<int32_t>(n - begin);
        ASSERT_EQ(place.tokens[n], position);
        ASSERT_EQ(place.targets[n], position + 1);
        ASSERT_EQ(batch.tokens[n], static_cast<uint8_t>(text[static_cast<size_t>(position)]));
        ASSERT_EQ(batch.targets[n], static_cast<uint8_t>(text[static_cast<size_t>(position) + 1]));
        reached[static_cast<size_t>(position)] = reached[static_cast<size_t>(position) + 1] = true;
      }
    }
  };
  std::vector<bool> training(text.size()), validation(text.size());
  for (int64_t i = 0; i < 60000; i += 3) mark(data->training_batch(i), places->training_batch(i), training);
  ASSERT_EQ(data->validation_sequences(), places->validation_sequences());
  for (int64_t i = 0; i < data->validation_sequences(); i += 3) {
    mark(data->validation_batch(i), places->validation_batch(i), validation);
  }

  // Validation is the last 7 percent, rounded down. Training reaches every token before.
  constexpr int64_t validation_tokens = 1627, training_tokens = 23256 - validation_tokens;
  ASSERT_EQ(text.size(), size_t{training_tokens + validation_tokens});
  const auto part = [&](int64_t begin, int64_t end) {
    std::vector<bool> marks(text.size());
    std::fill(marks.begin() + begin, marks.begin() + end, true);
    return marks;
  };
  EXPECT_TRUE(training == part(0, training_tokens));
  EXPECT_TRUE(validation == part(training_tokens, training_tokens + validation_tokens));
}

TEST(GoldenDataTest, GeneratedValidationIsNotTrainedOn) {
  for (const GoldenRun& run : {golden_runs()[1], golden_runs()[2]}) {
    const TrainConfig config = config_of(run);
    const auto data = make_dataset(dataset_options(config));
    std::set<std::vector<int32_t>> training, validation;
    for (int64_t i = 0; i < kLastStep * config.trainer.accumulate; ++i) {
      for (auto& sequence : sequences_of(data->training_batch(i * config.trainer.batch_size)))
        training.insert(sequence);
    }
    for (int64_t i = 0; i < data->validation_sequences(); i += 3) {
      for (auto& sequence : sequences_of(data->validation_batch(i))) validation.insert(sequence);
    }
    EXPECT_EQ(training.size(), size_t{20 * 2 * 3}) << run.name;
    EXPECT_EQ(validation.size(), size_t{3 * 2 * 3}) << run.name;
    for (const auto& sequence : validation) EXPECT_FALSE(training.contains(sequence)) << run.name;
  }
}

}  // namespace
}  // namespace heddle::golden_test
