// A disk that is full on the way: training goes on, what is there stays, and what could not be written is made up for.
// A disk that is full after the last checkpoint takes nothing but the last lines of the logs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/io/disk_space.h"
#include "tests/io/recorded_calls.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"
#include "trainers/trainer.h"

namespace heddle::disk_full_test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::RecordedCalls;
using ::testing::StartsWith;

// Writes down the notes, and calls functions after each step and each checkpoint.
struct Watcher : Logger {
  void step(const StepEvent& event) override {
    if (after_step) after_step(event.step);
  }
  void checkpoint(const CheckpointEvent& event) override {
    if (after_checkpoint) after_checkpoint(event.step);
  }
  void note(const std::string& line) override { notes.push_back(line); }

  std::function<void(int64_t step)> after_step, after_checkpoint;
  std::vector<std::string> notes;
};

class DiskFullTest : public ::testing::Test {
 protected:
  // Checkpoints after steps 2, 4 and 6, evaluations after 3 and 6.
  static TrainConfig config(const std::vector<std::string>& more = {}) {
    std::vector<std::string> settings = {"trainer.steps=6", "trainer.checkpoint_every=2", "trainer.eval_every=3",
                                         "trainer.keep_best=false", "trainer.eval_batches=1"};
    settings.insert(settings.end(), more.begin(), more.end());
    return testing::tiny_train_config(settings);
  }
  // Six steps on a text, with these files of logs; a sample after each of them, and one checkpoint, at the end.
  TrainConfig sampling(const std::string& logging) const {
    const std::string text = (folder_ / "text").string();
    write_file(text, std::string(400, 'x'));
    return config({"data={type: text, path: '" + text + "'}", "model.vocab_size=256", "trainer.sequence_length=8",
                   "trainer.checkpoint_every=0", "trainer.eval_every=0", "logging=" + logging,
                   "trainer.sample={prompt: a, tokens: 3, every: 1}"});
  }
  // What the files of logs hold beside times and notes: rows, events with their steps, the bytes of an event file.
  std::string logged(const std::string& name) const {
    std::string all;
    for (const auto& entry : fs::directory_iterator(folder_ / name)) {
      const std::string file = entry.path().filename().string();
      if (file == "metrics.csv") all += read_file(entry.path());
      if (file.starts_with("events.")) all += fmt::format("{} bytes of events\n", entry.file_size());
      if (file != "log.jsonl") continue;
      std::istringstream lines(read_file(entry.path()));
      for (std::string line; std::getline(lines, line);) {
        const nlohmann::json event = nlohmann::json::parse(line);
        if (event["event"] != "note") all += event["event"].dump() + event["step"].dump() + "\n";
      }
    }
    return all;
  }
  static void fill(RecordedCalls& record) {
    record.fails_on = true;
    record.fails_at = record.made;
  }
  static void make_room(RecordedCalls& record) { record.fails_at = SIZE_MAX; }
  TrainResult run(const std::string& name, const TrainConfig& config) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / name;
    options.log = nullptr;
    options.loggers = {&watcher_};
    return train(context, config, options);
  }
  // Goes on with the run once there is room.
  void go_on(const std::string& name, const TrainConfig& config) {
    RecordedCalls record(folder_.path());
    record.really_syncs = false;
    EXPECT_EQ(refusal(name, config), "");
  }
  // What the run says when the disk is too full to end; "" when it ends.
  std::string refusal(const std::string& name, const TrainConfig& config) {
    try {
      run(name, config);
    } catch (const NoSpace& error) {
      return error.what();
    }
    return "";
  }
  std::vector<int64_t> steps(const std::string& name) const {
    std::vector<int64_t> steps;
    for (const CheckpointFolder& checkpoint : list_checkpoints(folder_ / name / "checkpoints")) {
      EXPECT_NO_THROW(open_checkpoint(checkpoint.path)) << checkpoint.path;
      steps.push_back(checkpoint.step);
    }
    return steps;
  }
  void expect_no_partial_files(const std::string& name) const {
    if (!fs::exists(folder_ / name)) return;  // it could not start
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / name)) {
      EXPECT_FALSE(entry.path().filename().string().starts_with('.')) << entry.path();
    }
  }
  // What the run ended with is what the undisturbed one ended with.
  void expect_the_end_of(const std::string& whole, const std::string& name) const {
    for (const std::string file : {"config.yaml", "metrics.csv", "checkpoints/step_6/model.safetensors",
                                   "checkpoints/step_6/optimizer.safetensors", "checkpoints/step_6/state.json"}) {
      EXPECT_EQ(read_file(folder_ / (whole + "/" + file)), read_file(folder_ / (name + "/" + file))) << file;
    }
    expect_no_partial_files(name);
  }

  testing::TempFolder folder_;
  Watcher watcher_;
};

TEST_F(DiskFullTest, BeforeACheckpointIsBegunItsBytesAreThere) {
  run("whole", config());
  uint64_t size = 0;
  for (const auto& file : fs::directory_iterator(folder_ / "whole/checkpoints/step_6")) size += file.file_size();
  RecordedCalls record(folder_.path());
  record.available = size - 1;
  watcher_.after_step = [&](int64_t step) {
    if (step == 5) record.available = 2 * size + 65536;
  };
  run("run", config());
  ASSERT_EQ(watcher_.notes.size(), 2u);
  EXPECT_THAT(watcher_.notes[0],
              AllOf(HasSubstr("step 2 is not saved: no room for the checkpoint of step 2 in "),
                    HasSubstr(fmt::format(" bytes are needed, {} are available", size - 1)),
                    HasSubstr("; there is no checkpoint yet, and the next that is due is tried again")));
  EXPECT_THAT(watcher_.notes[1], HasSubstr("step 4 is not saved"));
  EXPECT_EQ(steps("run"), std::vector<int64_t>{6});
  EXPECT_EQ(std::count(record.calls.begin(), record.calls.end(), "open run/checkpoints/.step_2.heddle-partial/model"),
            0);
  expect_the_end_of("whole", "run");
}

// Whichever call finds the disk full, once: the run ends as ever, or says at its beginning or end that it cannot, and
// then the next start does. Checkpoints are whole all the time.
TEST_F(DiskFullTest, AtEveryWriteInTurn) {
  run("whole", config());
  size_t failing = 0, ended = 0;
  for (bool failed = true; failed; ++failing) {
    std::string said;
    {
      RecordedCalls record(folder_.path());
      record.really_syncs = false;
      record.fails_at = failing;
      watcher_.notes.clear();
      said = refusal("run", config());
      failed = record.made > failing;
    }
    expect_no_partial_files("run");
    steps("run");
    if (!said.empty()) {
      EXPECT_THAT(said, HasSubstr("No space left on device"));
      go_on("run", config());
    } else if (failed) {
      ++ended;
      ASSERT_EQ(watcher_.notes.size(), 1u) << failing;
      EXPECT_THAT(watcher_.notes[0], AllOf(HasSubstr("cannot "), HasSubstr("No space left on device; "),
                                           ::testing::AnyOf(StartsWith("step "), HasSubstr("; its lines are kept"))));
    }
    expect_the_end_of("whole", "run");
    fs::remove_all(folder_ / "run");
    ASSERT_FALSE(HasFailure()) << "call " << failing;
  }
  EXPECT_GT(ended, 40u);
  EXPECT_GT(failing, ended + 10);
}

// From some call on there is no room at all: the run trains to its end and says what is missing. Then somebody makes
// room.
TEST_F(DiskFullTest, FromEveryWriteOn) {
  run("whole", config());
  size_t failing = 0;
  for (bool failed = true; failed; ++failing) {
    std::string said;
    std::vector<int64_t> kept;
    {
      RecordedCalls record(folder_.path());
      record.really_syncs = false;
      record.fails_at = failing;
      record.fails_on = true;
      said = refusal("run", config());
      failed = record.made > failing;
    }
    if (fs::exists(folder_ / "run")) kept = steps("run");
    if (failed) {
      EXPECT_THAT(said, HasSubstr("No space left on device"));
      if (fs::exists(folder_ / "run/metrics.csv")) {
        EXPECT_THAT(said, AllOf(HasSubstr("step 6, the last, is not saved: "), HasSubstr("make room and train again"),
                                HasSubstr(kept.empty() ? "there is no checkpoint yet"
                                                       : fmt::format("checkpoints/step_{}", kept.back()))));
      }
      go_on("run", config());
    }
    expect_the_end_of("whole", "run");
    fs::remove_all(folder_ / "run");
    ASSERT_FALSE(HasFailure()) << "call " << failing;
  }
  EXPECT_GT(failing, 50u);
}

// A log that finds no room between two checkpoints keeps its lines until there is some.
TEST_F(DiskFullTest, LogsWaitForRoom) {
  for (const char* logging : {"{csv: true}", "{csv: false, jsonl: true}", "{csv: false, tensorboard: true}"}) {
    const TrainConfig config = sampling(logging);
    run("whole", config);
    RecordedCalls record(folder_.path());
    watcher_.after_step = [&](int64_t step) {
      if (step == 2) fill(record);
      if (step == 5) make_room(record);
    };
    EXPECT_TRUE(run("run", config).finished);
    EXPECT_THAT(watcher_.notes, ElementsAre(AllOf(StartsWith("cannot "), HasSubstr((folder_ / "run").string()),
                                                  EndsWith("No space left on device; its lines are kept, and written "
                                                           "when there is room"))))
        << "at three samples, and said once";
    EXPECT_EQ(logged("run"), logged("whole"));
    watcher_ = {};
    for (const char* name : {"run", "whole"}) fs::remove_all(folder_ / name);
  }
}

TEST_F(DiskFullTest, AFinishedRunHasItsTextThoughItsLogsHaveNoRoom) {
  for (const char* logging : {"{jsonl: true}", "{tensorboard: true}"}) {
    const TrainConfig config = sampling(logging);
    RecordedCalls record(folder_.path());
    watcher_.after_checkpoint = [&](int64_t) { fill(record); };
    const TrainResult result = run("run", config);
    EXPECT_TRUE(result.finished);
    EXPECT_THAT(result.sample, StartsWith("a"));
    EXPECT_EQ(steps("run"), std::vector<int64_t>{6});
    ASSERT_FALSE(watcher_.notes.empty());
    EXPECT_THAT(watcher_.notes.back(), EndsWith("No space left on device: its last lines are missing"));
    watcher_ = {};
    fs::remove_all(folder_ / "run");
  }
}

// The best checkpoint that was written stays when a better one finds no room.
TEST_F(DiskFullTest, TheBestThatWasWrittenIsKept) {
  const TrainConfig best = config({"trainer.steps=40", "trainer.checkpoint_every=10", "trainer.eval_every=5",
                                   "trainer.keep_checkpoints=1", "trainer.keep_best=true", "trainer.eval_batches=4"});
  RecordedCalls record(folder_.path());
  int64_t written = 0, missing = 0;
  struct Best : Watcher {
    void evaluation(const EvaluationEvent& event) override { evaluated(event); }
    std::function<void(const EvaluationEvent&)> evaluated;
  } listener;
  double lowest = 1e9;
  listener.evaluated = [&](const EvaluationEvent& event) {
    record.available = UINT64_MAX;
    if (event.loss >= lowest) return;
    lowest = event.loss;
    if (event.step > 20 && missing == 0) {
      record.available = 0;
      missing = event.step;
    } else if (missing == 0) {
      written = event.step;
    }
  };
  listener.after_step = [&](int64_t step) {
    if (missing > 0 && step == missing + 1) record.available = UINT64_MAX;
    if (missing > 0 && step == missing + 2) throw Error("ended");
  };
  Context context(Device{}, {.threads = 1});
  TrainOptions options;
  options.folder = folder_ / "run";
  options.log = nullptr;
  options.loggers = {&listener};
  options.checkpoint_requested = [&, asked = int64_t{0}]() mutable { return ++asked == missing + 1 && missing > 0; };
  EXPECT_THROW(train(context, best, options), Error);
  ASSERT_GT(missing, 20);
  EXPECT_EQ(fs::read_symlink(folder_ / "run/checkpoints/best"), fmt::format("step_{}", written));
  EXPECT_EQ(steps("run"), (std::vector<int64_t>{written, missing + 1}));
}

}  // namespace
}  // namespace heddle::disk_full_test
