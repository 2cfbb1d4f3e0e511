#include "trainers/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/io/system_calls.h"
#include "core/tensor/transfer.h"
#include "tests/error_of.h"
#include "tests/trainers/test_config.h"
#include "tests/trainers/trainer_test.h"
#include "trainers/dry_run.h"
#include "trainers/run/checkpoint.h"
#include "trainers/schedule.h"

namespace heddle::trainer_test {
namespace {

namespace fs = std::filesystem;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TrainerTest;

// Writes down what it is told.
class Listener : public Logger {
 public:
  void start(const StartEvent& event) override {
    tell("start {}/{} of {} numbers", event.step, event.steps, event.parameters);
  }
  void step(const StepEvent& event) override {
    tell("step {} of {}: {} tokens, {} in all", event.step, event.steps, event.tokens, event.total_tokens);
    EXPECT_GT(event.loss, 0.0);
    EXPECT_GT(event.gradient_norm, 0.0);
    EXPECT_GT(event.learning_rate, 0.0);
    EXPECT_GT(event.seconds, seconds_);
    EXPECT_GT(event.peak_bytes, 0u);
    seconds_ = event.seconds;
  }
  void evaluation(const EvaluationEvent& event) override { tell("evaluation {}", event.step); }
  void checkpoint(const CheckpointEvent& event) override {
    EXPECT_TRUE(fs::exists(event.path / "state.json"));
    tell("checkpoint {}", event.path.filename().string());
  }
  void end(const EndEvent& event) override {
    tell("end {} to {} of {}: {}, {} tokens", event.start, event.step, event.steps,
         event.finished ? "finished" : "stopped", event.tokens);
  }
  void sample(const SampleEvent& event) override { tell("sample of {} bytes", event.text.size()); }
  void note(const std::string& line) override { tell("note {}", line); }
  void flush() override { tell("flush"); }

  std::vector<std::string> told;

 private:
  template <class... Args>
  void tell(fmt::format_string<Args...> format, Args&&... args) {
    told.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  double seconds_ = 0.0;
};

TEST_F(TrainerTest, LoggersHearWhatHappensInItsOrder) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.steps=4", "trainer.checkpoint_every=2", "trainer.eval_every=3", "schedule.warmup_steps=1"});
  const std::string start = fmt::format("/4 of {} numbers", LanguageModel(config.model).parameters().count());
  Listener listener;
  loggers_ = {&listener};
  run("run", config, 1);
  EXPECT_THAT(listener.told,
              ::testing::ElementsAre("start 0" + start, "step 1 of 4: 64 tokens, 64 in all", "flush",
                                     "checkpoint step_1", "end 0 to 1 of 4: stopped, 64 tokens", "flush"));
  fs::create_directories(folder_ / "run/checkpoints/step_3");
  Listener second;
  loggers_ = {&second};
  run("run", config);
  EXPECT_THAT(second.told,
              ::testing::ElementsAre(HasSubstr("note passing over"), "start 1" + start,
                                     "step 2 of 4: 64 tokens, 128 in all", "flush", "checkpoint step_2", "flush",
                                     "step 3 of 4: 64 tokens, 192 in all", "evaluation 3", "flush", "checkpoint step_3",
                                     "flush", "step 4 of 4: 64 tokens, 256 in all", "evaluation 4", "flush",
                                     "checkpoint step_4", "end 1 to 4 of 4: finished, 192 tokens", "flush"));
}

TEST_F(TrainerTest, ASampleIsToldAndReturned) {
  std::ofstream(folder_ / "text") << std::string(400, 'x');
  Listener listener;
  loggers_ = {&listener};
  const TrainResult result =
      run("run", testing::tiny_train_config({"data={type: text, path: \"" + (folder_ / "text").string() + "\"}",
                                             "model.vocab_size=256", "trainer.steps=6", "trainer.sequence_length=8",
                                             "trainer.sample={prompt: abc, tokens: 5, temperature: 0}"}));
  EXPECT_THAT(result.sample, ::testing::StartsWith("abc"));
  const std::string sample = fmt::format("sample of {} bytes", result.sample.size());
  EXPECT_THAT(std::vector(listener.told.end() - 2, listener.told.end()), ::testing::ElementsAre(sample, "flush"));
}

TEST_F(TrainerTest, TheRunFolderHoldsConfigMetricsAndCheckpoints) {
  const TrainConfig config = testing::tiny_train_config({"trainer.keep_checkpoints=2"});
  const TrainResult result = run("run", config);
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.step, 40);
  ASSERT_TRUE(result.evaluation.has_value());
  EXPECT_EQ(result.sample, "");
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder_ / "run")) {
    files.push_back(entry.path().lexically_relative(folder_ / "run").string());
  }
  // The newest two and, where it is neither, the best.
  const std::set<fs::path> kept = {"step_30", "step_40", fs::read_symlink(folder_ / "run/checkpoints/best")};
  std::vector<std::string> wanted = {"config.yaml", "metrics.csv", "checkpoints", "checkpoints/best"};
  for (const fs::path& checkpoint : kept) {
    for (const char* part : {"", "model.safetensors", "optimizer.safetensors", "state.json"}) {
      wanted.push_back(*part == '\0' ? "checkpoints" / checkpoint : "checkpoints" / checkpoint / part);
    }
  }
  EXPECT_THAT(files, ::testing::UnorderedElementsAreArray(wanted));
  // The resolved config gives the same run.
  const TrainConfig resolved = read_train_config(parse_config(file("run/config.yaml")));
  run("again", resolved);
  EXPECT_EQ(file("run/metrics.csv"), file("again/metrics.csv"));
  EXPECT_EQ(file("run/config.yaml"), file("again/config.yaml"));
  const std::string metrics = file("run/metrics.csv");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 41);
}

TEST_F(TrainerTest, AStoppedRunGoesOnBitForBit) {
  for (const char* extra :
       {"trainer.dtype=float32", "trainer.dtype=bfloat16", "trainer.accumulate=2", "model.dropout=0.2"}) {
    const std::string whole = std::string("whole ") + extra, parts = std::string("parts ") + extra;
    const TrainConfig config = testing::tiny_train_config({extra});
    run(whole, config);
    const TrainResult stopped = run(parts, config, 7);
    EXPECT_FALSE(stopped.finished);
    EXPECT_EQ(stopped.step, 7);
    EXPECT_EQ(run(parts, config, 3).step, 10);  // where a checkpoint is due anyway
    EXPECT_EQ(run(parts, config, 1).step, 11);
    EXPECT_TRUE(run(parts, config).finished);
    for (const char* name : {"metrics.csv", "checkpoints/step_40/model.safetensors",
                             "checkpoints/step_40/optimizer.safetensors", "checkpoints/step_40/state.json"}) {
      EXPECT_EQ(file(whole + "/" + name), file(parts + "/" + name)) << extra << " " << name;
    }
  }
  EXPECT_THAT(log(), HasSubstr("to go on from"));
  EXPECT_THAT(log(), HasSubstr("resumed from"));
}

TEST_F(TrainerTest, ModelsOfAllConfigsTrainStopGoOnBitForBitAndWriteASample) {
  const std::vector<fs::path> paths = testing::model_configs();
  EXPECT_GE(paths.size(), 12u);
  for (const fs::path& path : paths) {
    const std::string name = path.stem().string();
    const TrainConfig config = testing::small_model_config(path);
    const TrainResult result = run("whole " + name, config);
    EXPECT_EQ(run("parts " + name, config, 3).step, 3) << name;
    const TrainResult resumed = run("parts " + name, config);
    EXPECT_TRUE(result.finished && resumed.finished) << name;
    EXPECT_THAT(result.sample, ::testing::StartsWith("And ")) << name;
    EXPECT_EQ(resumed.sample, result.sample) << name;
    for (const char* written : {"metrics.csv", "checkpoints/step_10/model.safetensors",
                                "checkpoints/step_10/optimizer.safetensors", "checkpoints/step_10/state.json"}) {
      EXPECT_EQ(file("whole " + name + "/" + written), file("parts " + name + "/" + written)) << name << " " << written;
    }
  }
}

TEST_F(TrainerTest, ACrashAfterTheMetricsWereWrittenLosesNothing) {
  const TrainConfig config = testing::tiny_train_config();
  run("whole", config);
  run("crashed", config, 25);
  // As if the process had ended after step 25 without its checkpoint: the metrics are ahead of step 20.
  fs::remove_all(folder_.path() / "crashed" / "checkpoints" / "step_25");
  run("crashed", config);
  EXPECT_EQ(file("whole/metrics.csv"), file("crashed/metrics.csv"));
  EXPECT_EQ(file("whole/checkpoints/step_40/model.safetensors"), file("crashed/checkpoints/step_40/model.safetensors"));
}

TEST_F(TrainerTest, ADamagedCheckpointIsPassedOver) {
  const TrainConfig config = testing::tiny_train_config();
  run("whole", config);
  run("damaged", config, 25);
  fs::resize_file(folder_.path() / "damaged/checkpoints/step_25/optimizer.safetensors", 100);
  EXPECT_TRUE(run("damaged", config).finished);
  EXPECT_THAT(log(), HasSubstr("step_25/optimizer.safetensors: 100 bytes, expected"));
  EXPECT_THAT(log(), HasSubstr("checkpoints/step_20"));
  EXPECT_EQ(file("whole/metrics.csv"), file("damaged/metrics.csv"));
  EXPECT_EQ(file("whole/checkpoints/step_40/model.safetensors"), file("damaged/checkpoints/step_40/model.safetensors"));
}

TEST_F(TrainerTest, AFinishedRunIsLeftAlone) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=10"});
  run("run", config);
  const std::string metrics = file("run/metrics.csv");
  EXPECT_TRUE(run("run", config).finished);
  EXPECT_THAT(log(), HasSubstr("nothing left to do"));
  const size_t said = log().size();
  run("run", config, 0, (folder_ / "run/checkpoints/step_10/").string());
  EXPECT_NE(log().find("nothing left to do", said), std::string::npos) << "a checkpoint with a slash behind it";
  EXPECT_EQ(file("run/metrics.csv"), metrics);
}

// A process that is killed behind the rename of its last checkpoint has not removed the older ones.
TEST_F(TrainerTest, AFinishedRunKeepsNoMoreCheckpointsThanItShould) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=10", "trainer.keep_checkpoints=1"});
  run("run", config);
  const fs::path checkpoints = folder_ / "run/checkpoints";
  fs::copy(checkpoints / "step_10", checkpoints / "step_5");
  fs::remove(checkpoints / "best");
  EXPECT_TRUE(run("run", config).finished);
  EXPECT_EQ(list_checkpoints(checkpoints).size(), 1u);
  EXPECT_EQ(fs::read_symlink(checkpoints / "best"), "step_10");
  EXPECT_EQ(open_checkpoint(checkpoints / "step_10").state.step, 10);

  // Beside a newest one that is damaged, the one that the run goes on from stays.
  fs::copy(checkpoints / "step_10", checkpoints / "step_12");
  fs::remove(checkpoints / "step_12/model.safetensors");
  EXPECT_TRUE(run("run", config).finished);
  EXPECT_EQ(open_checkpoint(checkpoints / "step_10").state.step, 10);
}

// It is said once, and the run goes on; the next one removes what has become removable.
TEST_F(TrainerTest, AnOldCheckpointThatCannotBeRemovedEndsNoRun) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.keep_checkpoints=1", "trainer.keep_best=false", "trainer.checkpoint_every=5"});
  const SystemCalls real = system_calls();
  system_calls().rename = [&](const char* from, const char* to) {
    if (!std::string_view(to).ends_with(".step_5.heddle-removed")) return real.rename(from, to);
    errno = EPERM;
    return -1;
  };
  EXPECT_EQ(run("run", config, 30).step, 30);
  system_calls() = real;
  const std::string said = log();
  const size_t first = said.find("cannot remove the old checkpoint ");
  EXPECT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find("cannot remove", first + 1), std::string::npos) << said;
  const fs::path checkpoints = folder_ / "run/checkpoints";
  EXPECT_EQ(list_checkpoints(checkpoints).size(), 2u);
  EXPECT_TRUE(run("run", config).finished);
  EXPECT_EQ(list_checkpoints(checkpoints).size(), 1u);
}

TEST_F(TrainerTest, ARunAdvancesBesideALaterDamagedCheckpoint) {
  const TrainConfig config = testing::tiny_train_config({"trainer.keep_checkpoints=1"});
  const fs::path checkpoints = folder_ / "run/checkpoints";
  fs::create_directories(folder_ / "run/checkpoints/step_999");
  EXPECT_THROW(run("run", config), Error) << "none of the checkpoints is whole";
  fs::remove_all(checkpoints);
  run("run", config, 15);
  fs::create_directories(checkpoints / "step_999");
  EXPECT_EQ(run("run", config, 10).step, 25);
  EXPECT_EQ(open_checkpoint(checkpoints / "step_25").state.step, 25);
  EXPECT_TRUE(run("run", config).finished);
  EXPECT_EQ(open_checkpoint(checkpoints / "step_40").state.step, 40);
  EXPECT_TRUE(fs::exists(checkpoints / "step_999"));
}

// A loss on other data is none to beat.
TEST_F(TrainerTest, TheBestOfOtherDataIsForgotten) {
  const std::vector<std::string> common = {"trainer.stop_after_no_gain=0", "schedule.type=constant"};
  const auto with = [&](const std::string& steps, const std::string& more) {
    std::vector<std::string> all = common;
    all.insert(all.end(), {"trainer.steps=" + steps, more});
    return testing::tiny_train_config(all);
  };
  run("run", with("40", "seed=7"));
  const double before = open_checkpoint(folder_ / "run/checkpoints/step_40").state.evaluations.best->loss;
  run("other", with("50", "data.length=5"), 0, (folder_ / "run").string());
  EXPECT_THAT(log(), HasSubstr("was of other validation data: it starts anew"));
  const EvaluationHistory history = open_checkpoint(folder_ / "other/checkpoints/step_50").state.evaluations;
  EXPECT_EQ(history.best->step, 50);
  EXPECT_NE(history.best->loss, before);
  EXPECT_EQ(fs::read_symlink(folder_ / "other/checkpoints/best"), "step_50");
}

// How many sequences an evaluation reads follows from the size of a step, too, and generated ones from the seed.
TEST_F(TrainerTest, TheBestOfOtherValidationSequencesIsForgotten) {
  using Overrides = std::vector<std::string>;
  const std::string path = folder_ / "text";
  std::ofstream(path) << std::string(4000, 'x');
  const Overrides copies;
  int count = 0;
  const Overrides text = {"data={type: text, path: \"" + path + "\", validation_fraction: 0.5}",
                          "model.vocab_size=256"};
  const auto train_to = [&](int64_t steps, const Overrides& data, const Overrides& more, const std::string& from) {
    Overrides all = {"trainer.steps=" + std::to_string(steps), "schedule.type=constant", "trainer.eval_batches=6"};
    all.insert(all.end(), data.begin(), data.end());
    all.insert(all.end(), more.begin(), more.end());
    const std::string folder = "run_" + std::to_string(++count);
    run(folder, testing::tiny_train_config(all), 0, from);
    return folder_ / folder;
  };
  const auto forgets = [&](const Overrides& data, const Overrides& then, const Overrides& now) {
    const std::string from = train_to(4, data, then, "auto");
    const size_t said = log().size();
    train_to(5, data, now, from);
    return log().find("was of other validation data: it starts anew", said) != std::string::npos;
  };
  EXPECT_FALSE(forgets(copies, {}, {}));
  EXPECT_TRUE(forgets(copies, {}, {"trainer.batch_size=8"}));
  EXPECT_TRUE(forgets(copies, {}, {"trainer.accumulate=2"}));
  EXPECT_FALSE(forgets(copies, {}, {"trainer.batch_size=8", "trainer.eval_batches=3"})) << "as many as before";
  EXPECT_TRUE(forgets(copies, {}, {"seed=9"}));
  EXPECT_FALSE(forgets(text, {}, {"seed=9"})) << "windows of a file do not depend on it";
  EXPECT_TRUE(forgets(text, {}, {"trainer.batch_size=8"}));
  EXPECT_FALSE(forgets(text, {"trainer.eval_batches=100"}, {"trainer.eval_batches=all"})) << "there are only 125";
  EXPECT_TRUE(forgets(text, {}, {"trainer.eval_batches=all"}));

  const auto sources = [&](const std::string& name, const std::string& weight) {
    std::ofstream(folder_ / name) << std::string(4000, 'y');
    const std::string list =
        "{path: \"" + path + "\", weight: 1}, {path: \"" + (folder_ / name).string() + "\", weight: ";
    return Overrides{"data={type: text, sources: [" + list + weight + "}]}", "model.vocab_size=256"};
  };
  EXPECT_FALSE(forgets({}, sources("second", "2"), sources("moved", "2"))) << "the same file of another name";
  EXPECT_TRUE(forgets({}, sources("second", "2"), sources("second", "3")));
}

TEST_F(TrainerTest, OptionsThatAreMissingAreNamed) {
  Context context(Device{}, {.threads = 1});
  const auto said = [&](const std::function<void(TrainOptions&)>& change) -> std::string {
    TrainOptions options;
    options.folder = folder_ / "run";
    options.log = nullptr;
    change(options);
    try {
      train(context, testing::tiny_train_config({"trainer.steps=1"}), options);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(said([](TrainOptions& options) { options.folder.clear(); }),
            "TrainOptions::folder is empty, expected a run folder");
  EXPECT_EQ(said([](TrainOptions& options) { options.loggers = {nullptr}; }), "TrainOptions::loggers holds nullptr");
  EXPECT_EQ(said([](TrainOptions& options) { options.stop_requested = nullptr; }),
            "TrainOptions::stop_requested is empty, expected a function");
  EXPECT_EQ(said([](TrainOptions& options) { options.checkpoint_requested = nullptr; }),
            "TrainOptions::checkpoint_requested is empty, expected a function");
  EXPECT_EQ(said([](TrainOptions&) {}), "accepted");
}

TEST_F(TrainerTest, ALongerRunGoesOnFromAPathIntoAnotherFolder) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=10", "schedule.type=constant"});
  const TrainConfig longer = testing::tiny_train_config({"trainer.steps=20", "schedule.type=constant"});
  run("short", config);
  EXPECT_THROW(run("short", longer), UsageError);
  run("longer", longer, 0, (folder_ / "short").string());
  run("whole", longer);
  EXPECT_EQ(file("longer/metrics.csv"), file("whole/metrics.csv"));
  EXPECT_EQ(file("longer/checkpoints/step_20/model.safetensors"), file("whole/checkpoints/step_20/model.safetensors"));
}

TEST_F(TrainerTest, StoppedBeforeTheFirstStepItGoesOnBitForBit) {
  const TrainConfig config = testing::tiny_train_config();
  run("whole", config);
  Context context(Device{}, {.threads = 1});
  TrainOptions options;
  options.folder = folder_ / "run";
  options.log = log_;
  options.stop_requested = [] { return true; };
  EXPECT_EQ(train(context, config, options).step, 0);
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step_0/state.json"));
  EXPECT_TRUE(run("run", config).finished);
  for (const char* name : {"metrics.csv", "checkpoints/step_40/model.safetensors", "checkpoints/step_40/state.json"}) {
    EXPECT_EQ(file(std::string("whole/") + name), file(std::string("run/") + name)) << name;
  }
}

TEST_F(TrainerTest, ANewCheckpointIsWrittenWhenOneIsAskedFor) {
  Context context(Device{}, {.threads = 1});
  TrainOptions options;
  options.folder = folder_ / "run";
  options.log = log_;
  options.checkpoint_requested = [step = 0]() mutable { return ++step == 33; };
  EXPECT_TRUE(train(context, testing::tiny_train_config(), options).finished);
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step_33/state.json"));
}

// Files are brought up to date at each evaluation, with a checkpoint or without.
TEST_F(TrainerTest, AnEvaluationIsInTheFilesBeforeTheNextStep) {
  struct Reader : Logger {
    void step(const StepEvent& event) override {
      if (event.step == 4) metrics = read();
    }
    std::function<std::string()> read;
    std::string metrics;
  } reader;
  reader.read = [this] { return file("run/metrics.csv"); };
  loggers_ = {&reader};
  run("run",
      testing::tiny_train_config({"trainer.eval_every=3", "trainer.checkpoint_every=30", "trainer.keep_best=false"}),
      5);
  EXPECT_THAT(reader.metrics, HasSubstr("\n3,"));
}

// Training goes on where it was in the data, whatever the batches are.
TEST_F(TrainerTest, AnotherBatchSizeUsesEverySequenceOnce) {
  struct Reader : Logger {
    void step(const StepEvent& event) override { tokens.push_back(event.total_tokens); }
    std::vector<int64_t> tokens;
  } reader;
  const std::vector<std::string> settings = {"trainer.steps=12", "schedule.type=constant", "trainer.eval_every=0"};
  const auto with = [&](const std::string& batch_size, const std::string& accumulate) {
    std::vector<std::string> all = settings;
    all.insert(all.end(), {"trainer.batch_size=" + batch_size, "trainer.accumulate=" + accumulate});
    return testing::tiny_train_config(all);
  };
  loggers_ = {&reader};
  run("run", with("4", "1"), 5);                              // 20 sequences of 16 tokens
  run("run", with("2", "3"), 2, (folder_ / "run").string());  // 12
  run("run", with("8", "1"), 0, (folder_ / "run").string());  // 5 times 8
  EXPECT_THAT(reader.tokens, ::testing::ElementsAre(64, 128, 192, 256, 320, 416, 512, 640, 768, 896, 1024, 1152));
  const Checkpoint last = open_checkpoint(folder_ / "run/checkpoints/step_12");
  EXPECT_EQ(last.state.trained_on->sequences, 72);
  EXPECT_EQ(last.state.trained_on->tokens, 1152);
  // metrics.csv has the same numbers, which only grow.
  EXPECT_THAT(file("run/metrics.csv"), HasSubstr("\n7,512,"));
  EXPECT_THAT(file("run/metrics.csv"), HasSubstr("\n8,640,"));
}

// Which sequences a run that goes on reads, and at which rate, seen by the weights that they give.
TEST_F(TrainerTest, ARunGoesOnWithTheSequenceAfterTheLastOne) {
  const auto config = [](int64_t batch_size, int64_t accumulate) {
    return testing::tiny_train_config({"trainer.steps=8", "trainer.eval_every=0", "schedule.warmup_steps=3",
                                       "trainer.batch_size=" + std::to_string(batch_size),
                                       "trainer.accumulate=" + std::to_string(accumulate)});
  };
  run("run", config(4, 1), 5);  // the sequences 0 .. 19
  run("run", config(2, 3), 0, (folder_ / "run").string());

  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config(4, 1));
  const auto data = make_dataset(dataset_options(config(4, 1))), cut = make_dataset(dataset_options(config(2, 3)));
  for (int64_t step = 1; step <= 8; ++step) {
    const int64_t first = 20 + (step - 6) * 6;
    std::vector<Batch> batches = {data->training_batch((step - 1) * 4)};
    if (step > 5)
      batches = {cut->training_batch(first), cut->training_batch(first + 2), cut->training_batch(first + 4)};
    train_step.step(batches, step, learning_rate(config(4, 1), step));
  }
  SafetensorsReader reader(folder_ / "run/checkpoints/step_8/model.safetensors");
  for (const Parameter& parameter : train_step.model().parameters().all()) {
    EXPECT_EQ(read_values(context, reader.read(context, reader.at(parameter.name))),
              read_values(context, parameter.master))
        << parameter.name;
  }
}

TEST_F(TrainerTest, OtherDataAreRefusedOrNoted) {
  const fs::path text = folder_ / "text";
  std::ofstream(text) << std::string(4000, 'x');
  const TrainConfig config = testing::tiny_train_config(
      {"data={type: text, path: \"" + text.string() + "\"}", "model.vocab_size=256", "trainer.steps=6"});
  run("run", config, 3);
  std::ofstream(text, std::ios::app) << std::string(3000, 'y');
  const std::string metrics = file("run/metrics.csv"), resolved = file("run/config.yaml");
  EXPECT_THROW(run("run", config), UsageError);
  EXPECT_EQ(file("run/metrics.csv"), metrics);
  EXPECT_EQ(file("run/config.yaml"), resolved);
  EXPECT_TRUE(run("run", config, 0, (folder_ / "run").string()).finished);
  EXPECT_THAT(log(), HasSubstr("note: the data are not those that"));
}

TEST_F(TrainerTest, TheConfigIsWrittenOnlyByARunThatBegins) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=10"});
  run("run", config);
  const std::string resolved = file("run/config.yaml");
  // Not by one that cannot go on, not by one that has nothing to do.
  EXPECT_THROW(run("run", testing::tiny_train_config({"trainer.steps=20"})), UsageError);
  EXPECT_THROW(run("run", testing::tiny_train_config({"model.dim=32"}), 0, (folder_ / "run").string()), Error);
  run("run", testing::tiny_train_config({"trainer.steps=9"}), 0, (folder_ / "run").string());
  EXPECT_EQ(file("run/config.yaml"), resolved);
  EXPECT_EQ(file("run/checkpoints/step_10/state.json"), file("run/checkpoints/step_10/state.json"));
}

TEST_F(TrainerTest, TheBestCheckpointIsKeptBesideTheLast) {
  std::vector<std::string> settings = {"trainer.keep_checkpoints=1", "trainer.eval_every=7", "optimizer.lr=0.3",
                                       "schedule={type: constant, warmup_steps: 0}", "trainer.stop_after_no_gain=0"};
  // At so high a rate the losses go up and down, each with the rounding of a build; the last is the best of six by
  // luck.
  EvaluationHistory history;
  for (int seed = 1; seed <= 20 && (!history.best || history.best->step == 40); ++seed) {
    fs::remove_all(folder_ / "run");
    settings.push_back(fmt::format("seed={}", seed));
    run("run", testing::tiny_train_config(settings));
    history = open_checkpoint(folder_ / "run/checkpoints/step_40").state.evaluations;
    ASSERT_TRUE(history.best.has_value());
  }
  ASSERT_LT(history.best->step, 40) << "the rate is meant to be too high";
  const std::string best = fmt::format("step_{}", history.best->step);
  EXPECT_EQ(fs::read_symlink(folder_ / "run/checkpoints/best"), best);
  EXPECT_EQ(open_checkpoint(folder_ / "run/checkpoints/best").state.step, history.best->step);
  std::vector<std::string> names;
  for (const CheckpointFolder& checkpoint : list_checkpoints(folder_ / "run/checkpoints")) {
    names.push_back(checkpoint.path.filename().string());
  }
  EXPECT_THAT(names, ::testing::ElementsAre(best, "step_40"));
  EXPECT_THAT(file("run/metrics.csv"), HasSubstr(fmt::format(",{:.9g},", history.best->loss)));

  std::vector<std::string> without = settings;
  without.push_back("trainer.keep_best=false");
  run("without", testing::tiny_train_config(without));
  EXPECT_EQ(list_checkpoints(folder_ / "without/checkpoints").size(), 1u);
}

TEST_F(TrainerTest, ARunWithoutGainEnds) {
  const TrainConfig config =
      testing::tiny_train_config({"trainer.steps=1000", "trainer.eval_every=2", "optimizer.lr=0.3",
                                  "schedule={type: constant, warmup_steps: 0}", "trainer.stop_after_no_gain=3"});
  const TrainResult result = run("run", config);
  EXPECT_TRUE(result.finished);
  ASSERT_LT(result.step, 1000);
  const EvaluationHistory history =
      open_checkpoint(folder_ / fmt::format("run/checkpoints/step_{}", result.step)).state.evaluations;
  EXPECT_EQ(history.without_gain, 3);
  EXPECT_EQ(history.best->step, result.step - 6);
  EXPECT_THAT(log(), HasSubstr(fmt::format("not better than at step {} in 3 evaluations", history.best->step)));
  // It has ended, and a stop on the way changes nothing.
  EXPECT_EQ(run("run", config).step, result.step);
  run("stopped", config, result.step - 3);
  EXPECT_EQ(run("stopped", config).step, result.step);
  EXPECT_EQ(file("run/metrics.csv"), file("stopped/metrics.csv"));
}

TEST_F(TrainerTest, ANewRunMayStartFromWeights) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=20"});
  const double trained = run("first", config).evaluation.value().loss;
  init_from_ = folder_ / "first";
  const TrainConfig tuned = testing::tiny_train_config(
      {"trainer.steps=1", "optimizer.lr=1e-9", "schedule={type: constant, warmup_steps: 0}"});
  const TrainResult result = run("second", tuned);
  EXPECT_NEAR(result.evaluation.value().loss, trained, 1e-4);
  EXPECT_THAT(file("second/metrics.csv"), HasSubstr("\n1,64,"));
  EXPECT_THAT(log(), HasSubstr("note: the weights are those of " + (folder_ / "first/checkpoints/step_20").string()));
  EXPECT_THROW(run("third", testing::tiny_train_config({"model.dim=32"})), Error);
  EXPECT_FALSE(fs::exists(folder_ / "third/config.yaml"));
  EXPECT_THROW(run("third", config, 0, (folder_ / "first").string()), UsageError);
}

TEST_F(TrainerTest, ARunThatGoesOnSaysThatItStartsFromNoWeights) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=20"});
  run("run", config, 5);
  init_from_ = folder_ / "run";
  EXPECT_EQ(run("run", config).step, 20);
  EXPECT_THAT(log(), HasSubstr("note: --init-from is for a new run, and has no effect here: this one goes on from " +
                               (folder_ / "run/checkpoints/step_5").string()));
  EXPECT_THAT(log(), ::testing::Not(HasSubstr("the weights are those of")));
}

TEST_F(TrainerTest, TextsAreShownOnTheWay) {
  std::ofstream(folder_ / "text") << std::string(400, 'x');
  const std::string text = "data={type: text, path: \"" + (folder_ / "text").string() + "\"}";
  const auto with = [&](const std::string& sample) {
    return testing::tiny_train_config({text, "model.vocab_size=256", "trainer.steps=6", "trainer.sequence_length=8",
                                       "schedule.warmup_steps=1", "trainer.sample=" + sample});
  };
  Listener listener;
  loggers_ = {&listener};
  run("run", with("{prompt: abc, tokens: 5, every: 2}"));
  EXPECT_EQ(std::count_if(listener.told.begin(), listener.told.end(),
                          [](const std::string& line) { return line.starts_with("sample"); }),
            3);  // after steps 2 and 4, and at the end
  EXPECT_THAT(log(), HasSubstr("sample after step 2:\nabc"));
  loggers_.clear();
  run("without", with("{prompt: abc, tokens: 5}"));
  EXPECT_EQ(file("run/metrics.csv"), file("without/metrics.csv"));
}

TEST_F(TrainerTest, ADynamicLossScaleGoesOnBitForBit) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float16", "trainer.loss_scale=dynamic"});
  run("whole", config);
  run("parts", config, 13);
  run("parts", config);
  for (const char* name : {"metrics.csv", "checkpoints/step_40/model.safetensors", "checkpoints/step_40/state.json"}) {
    EXPECT_EQ(file(std::string("whole/") + name), file(std::string("parts/") + name)) << name;
  }
  EXPECT_EQ(open_checkpoint(folder_ / "parts/checkpoints/step_40").state.loss_scale->good_steps, 40);
}

// By rotation the other tests train.
TEST_F(TrainerTest, TrainsWithLrpeCosine) {
  const auto config = [&](const std::string& steps, const std::string& lrpe) {
    std::vector<std::string> overrides = testing::learn_text((folder_ / "text").string(), steps);
    overrides.push_back("model.mixer.lrpe=" + lrpe);
    return testing::tiny_train_config(overrides);
  };
  for (const std::string lrpe :
       {"{type: lrpe_cosine, act: silu}", "{type: lrpe_cosine, learnable: true, per_head: true, extra_tokens: 2}",
        "{type: lrpe_cosine, shape: [4, 4], theta_init: low_half}"}) {
    EXPECT_GT(run("one " + lrpe, config("1", lrpe)).evaluation.value().loss, testing::kUnlearnedLoss) << lrpe;
    EXPECT_LT(run("many " + lrpe, config("60", lrpe)).evaluation.value().loss, testing::kLearnedLoss) << lrpe;
    EXPECT_EQ(run("stopped " + lrpe, config("60", lrpe), 7).step, 7);
    run("stopped " + lrpe, config("60", lrpe));
    EXPECT_EQ(file("many " + lrpe + "/metrics.csv"), file("stopped " + lrpe + "/metrics.csv"));
  }
}

TEST_F(TrainerTest, StopsBeforeTheUpdateWhenNumbersBlowUp) {
  const TrainConfig config =
      testing::tiny_train_config({"optimizer.lr=1.0e+30", "schedule.warmup_steps=0", "optimizer.weight_decay=0.0"});
  try {
    run("run", config);
    ADD_FAILURE() << "no error";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(), HasSubstr("made the first non-finite number ("));
    EXPECT_THAT(error.what(), HasSubstr("A lower optimizer.lr"));
    EXPECT_THAT(error.what(), HasSubstr("there is no checkpoint yet"));
  }
  const std::string metrics = file("run/metrics.csv");
  EXPECT_THAT(metrics, HasSubstr("\n1,"));
  EXPECT_THAT(metrics, ::testing::Not(HasSubstr("nan")));
}

// The only step is taken from good weights to such as no evaluation survives.
TEST_F(TrainerTest, AValidationLossThatIsNotFiniteIsNoted) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.steps=1", "optimizer.lr=1.0e+30", "schedule={type: constant}", "trainer.sample=null"});
  const TrainResult result = run("run", config);
  EXPECT_TRUE(result.finished);
  EXPECT_FALSE(std::isfinite(result.evaluation.value().loss));
  EXPECT_THAT(log(), HasSubstr("note: the validation loss after step 1 is nan, though the losses of the steps were "
                               "finite\n"));
  EXPECT_THAT(file("run/metrics.csv"), HasSubstr(",nan,"));
}

TEST_F(TrainerTest, NoLossesAreCalledFiniteWhereStepsWereLeftOut) {
  const TrainConfig config =
      testing::tiny_train_config({"trainer.steps=2", "optimizer.lr=1.0e+30", "schedule={type: constant}",
                                  "trainer.skip_nonfinite=1", "trainer.sample=null"});
  EXPECT_FALSE(std::isfinite(run("run", config).evaluation.value().loss));
  EXPECT_THAT(log(), HasSubstr("note: 1 of 2 steps were left out, since their numbers were not finite\n"));
  EXPECT_THAT(log(), HasSubstr("note: the validation loss after step 2 is nan\n"));
}

// What a config file could not say is no config of a program either.
TEST_F(TrainerTest, AConfigThatAProgramChangedIsCheckedLikeAFile) {
  using Change = std::function<void(TrainConfig&)>;
  const std::vector<std::pair<Change, std::string>> changes = {
      {[](TrainConfig& config) { config.trainer.batch_size = 0; }, "trainer.batch_size: found '0'"},
      {[](TrainConfig& config) { config.trainer.sequence_length = 0; }, "trainer.sequence_length: found '0'"},
      {[](TrainConfig& config) { config.trainer.accumulate = 0; }, "trainer.accumulate: found '0'"},
      {[](TrainConfig& config) { config.trainer.steps = -3; }, "trainer.steps: found '-3', expected an integer > 0"},
      {[](TrainConfig& config) { config.trainer.keep_checkpoints = 0; }, "trainer.keep_checkpoints: found '0'"},
      {[](TrainConfig& config) { config.trainer.ema = 1.5; }, "trainer.ema: found '1.5'"},
      {[](TrainConfig& config) { config.model.layers = 0; }, "model.layers: found '0'"},
      {[](TrainConfig& config) { config.optimizer.lr = -1; }, "optimizer.lr: found '-1', expected a number > 0"},
      {[](TrainConfig& config) { config.optimizer.lr = INFINITY; }, "lr is inf, expected a finite number"},
      {[](TrainConfig& config) { config.schedule.min_lr = 1; }, "schedule.min_lr: found 1, expected at most"},
      {[](TrainConfig& config) { config.data.length = 0; }, "data.length: found '0'"},
      {[](TrainConfig& config) { config.logging.every = 0; }, "logging.every: found '0'"},
  };
  for (const auto& [change, message] : changes) {
    TrainConfig config = testing::tiny_train_config();
    change(config);
    EXPECT_THAT(error_of([&] { run("run", config); }), HasSubstr(message));
    EXPECT_THAT(error_of([&] { dry_run(config); }), HasSubstr(message));
  }
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(TrainerTest, LearnsToCopyAndToRecall) {
#if defined(HEDDLE_SANITIZED)
  GTEST_SKIP() << "hundreds of steps, which the other tests take one by one";
#endif
  const auto accuracy = [&](const std::string& name, const std::vector<std::string>& overrides) {
    const std::string path = std::string(HEDDLE_SOURCE_DIR) + "/configs/" + name + ".yaml";
    const TrainResult result = run(name, load_train_config(path, overrides));
    return result.evaluation.value().accuracy;
  };
  // By chance 0.13 and 0.07 are right; seeds 1 to 4 end between 0.97 and 1.
  EXPECT_GE(accuracy("toy_mqar", {"trainer.steps=400"}), 0.80);
  EXPECT_GE(accuracy("toy_copy", {"trainer.steps=150"}), 0.80);
}

}  // namespace
}  // namespace heddle::trainer_test
