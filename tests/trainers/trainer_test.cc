#include "trainers/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : log_(std::fopen((folder_ / "log").c_str(), "w")) {}
  ~TrainerTest() override { std::fclose(log_); }

  // Stops after `steps` steps of this call; 0: does not.
  TrainResult run(const std::string& name, const TrainConfig& config, int64_t steps = 0,
                  const std::string& resume = "auto") {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / name;
    options.resume = resume;
    options.log = log_;
    options.loggers = loggers_;
    options.stop_requested = [left = steps]() mutable { return --left == 0; };
    return train(context, config, options);
  }
  std::string file(const std::string& path) { return read_file(folder_ / path); }
  std::string log() {
    std::fflush(log_);
    return file("log");
  }

  testing::TempFolder folder_;
  std::FILE* log_;
  std::vector<Logger*> loggers_;
};

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
  EXPECT_THAT(listener.told, ::testing::ElementsAre("start 0" + start, "step 1 of 4: 64 tokens, 64 in all", "flush",
                                                    "checkpoint step_1", "end 0 to 1 of 4: stopped, 64 tokens"));
  fs::create_directories(folder_ / "run/checkpoints/step_3");
  Listener second;
  loggers_ = {&second};
  run("run", config);
  EXPECT_THAT(second.told, ::testing::ElementsAre(HasSubstr("note passing over"), "start 1" + start,
                                                  "step 2 of 4: 64 tokens, 128 in all", "flush", "checkpoint step_2",
                                                  "step 3 of 4: 64 tokens, 192 in all", "evaluation 3", "flush",
                                                  "step 4 of 4: 64 tokens, 256 in all", "evaluation 4", "flush",
                                                  "checkpoint step_4", "end 1 to 4 of 4: finished, 192 tokens"));
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
  EXPECT_EQ(listener.told.back(), fmt::format("sample of {} bytes", result.sample.size()));
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
    files.push_back(fs::relative(entry.path(), folder_ / "run").string());
  }
  EXPECT_THAT(files,
              ::testing::UnorderedElementsAre(
                  "config.yaml", "metrics.csv", "checkpoints", "checkpoints/step_30",
                  "checkpoints/step_30/model.safetensors", "checkpoints/step_30/optimizer.safetensors",
                  "checkpoints/step_30/state.json", "checkpoints/step_40", "checkpoints/step_40/model.safetensors",
                  "checkpoints/step_40/optimizer.safetensors", "checkpoints/step_40/state.json"));
  // The resolved config gives the same run.
  const TrainConfig resolved = read_train_config(parse_config(file("run/config.yaml")));
  run("again", resolved);
  EXPECT_EQ(file("run/metrics.csv"), file("again/metrics.csv"));
  EXPECT_EQ(file("run/config.yaml"), file("again/config.yaml"));
  const std::string metrics = file("run/metrics.csv");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 41);
}

TEST_F(TrainerTest, AStoppedRunGoesOnBitForBit) {
  for (const char* extra : {"trainer.dtype=float32", "trainer.dtype=bfloat16", "trainer.accumulate=2"}) {
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
  EXPECT_EQ(file("run/metrics.csv"), metrics);
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

// By rotation the other tests train.
TEST_F(TrainerTest, TrainsWithLrpeCosine) {
  const auto config = [](const std::string& steps, const std::string& lrpe) {
    return testing::tiny_train_config(
        {"trainer.steps=" + steps, "optimizer.lr=1.0e-2", "schedule.warmup_steps=0", "model.mixer.lrpe=" + lrpe});
  };
  for (const std::string lrpe :
       {"{type: lrpe_cosine, act: silu}", "{type: lrpe_cosine, learnable: true, per_head: true, extra_tokens: 2}",
        "{type: lrpe_cosine, shape: [4, 4], theta_init: low_half}"}) {
    const double before = run("one " + lrpe, config("1", lrpe)).evaluation.value().loss;
    const double after = run("many " + lrpe, config("60", lrpe)).evaluation.value().loss;
    EXPECT_LT(after, 0.8 * before) << lrpe;
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
    EXPECT_THAT(error.what(), HasSubstr("first not finite: "));
    EXPECT_THAT(error.what(), HasSubstr("A lower optimizer.lr"));
  }
  const std::string metrics = file("run/metrics.csv");
  EXPECT_THAT(metrics, HasSubstr("\n1,"));
  EXPECT_THAT(metrics, ::testing::Not(HasSubstr("nan")));
}

TEST_F(TrainerTest, LearnsToCopyAndToRecall) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "hundreds of steps, which the other tests take one by one";
#endif
  const auto accuracy = [&](const std::string& name, const std::vector<std::string>& overrides) {
    const std::string path = std::string(HEDDLE_SOURCE_DIR) + "/configs/" + name + ".yaml";
    const TrainResult result = run(name, load_train_config(path, overrides));
    return result.evaluation.value().accuracy;
  };
  EXPECT_GE(accuracy("toy_mqar", {"trainer.steps=400"}), 0.90);
  EXPECT_GE(accuracy("toy_copy", {"trainer.steps=150"}), 0.95);
}

}  // namespace
}  // namespace heddle
