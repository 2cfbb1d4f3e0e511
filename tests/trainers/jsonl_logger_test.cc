#include "trainers/logging/jsonl_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/trainer.h"

namespace heddle::jsonl_logger_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<json> lines_of(const fs::path& path) {
  std::istringstream text(read_file(path));
  std::vector<json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
  return lines;
}

// "step 3", ..
std::vector<std::string> names_of(const std::vector<json>& lines) {
  std::vector<std::string> names;
  for (const json& line : lines) {
    names.push_back(line["event"].get<std::string>() + " " + std::to_string(line["step"].get<int64_t>()));
  }
  return names;
}

class JsonlLoggerTest : public ::testing::Test {
 protected:
  JsonlLogger logger(const LoggingConfig& config = {}) {
    return JsonlLogger(
        path_, [this](const std::string& line) { notes_.push_back(line); }, config);
  }
  // Goes on after `step` in the run folder that the file lies in.
  StartEvent after(int64_t step) const {
    StartEvent event;
    event.step = step;
    event.steps = 9;
    event.checkpoint = folder_ / "checkpoints" / ("step_" + std::to_string(step));
    fs::create_directories(*event.checkpoint);
    return event;
  }

  testing::TempFolder folder_;
  fs::path path_ = folder_ / "log.jsonl";
  std::vector<std::string> notes_;
};

TEST_F(JsonlLoggerTest, EveryEventIsAnObject) {
  JsonlLogger log = logger({.every = 3});
  log.note("before");
  StartEvent start;
  start.steps = 9;
  start.config = "toy";
  start.parameters = 7;
  start.dtype = DType::bfloat16;
  log.start(start);
  for (int64_t step = 1; step <= 4; ++step) {
    StepEvent event{.step = step, .steps = 9, .tokens = 32, .total_tokens = 32 * step, .loss = 0.1};
    event.seconds = 0.25 * static_cast<double>(step);
    event.category_peaks[0] = 512;
    log.step(event);
  }
  log.evaluation({.step = 4, .loss = std::nan("")});
  log.checkpoint({.step = 4, .path = "runs/step_4"});
  log.profile({.step = 4, .tables = "a\nb", .trace = "t.json"});
  EndEvent end;
  end.finished = true;
  end.step = 4;
  end.best = EvaluationHistory::Best{.step = 2, .loss = 0.5};
  log.end(end);
  log.sample({.step = 4, .text = "not \xFF UTF-8\n"});
  log.flush();
  const std::vector<json> lines = lines_of(path_);
  EXPECT_THAT(names_of(lines), ElementsAre("start 0", "note 0", "step 1", "step 3", "evaluation 4", "checkpoint 4",
                                           "profile 4", "end 4", "sample 4"));
  EXPECT_EQ(lines[0]["config"], "toy");
  EXPECT_EQ(lines[0]["dtype"], "bfloat16");
  EXPECT_GT(lines[0]["time"], 1.7e9);
  EXPECT_EQ(lines[1]["text"], "before");
  EXPECT_EQ(lines[3]["tokens"], 96);
  EXPECT_EQ(lines[3]["loss"], 0.1) << "all digits are kept";
  EXPECT_EQ(lines[3]["tokens_per_second"], 128.0);
  EXPECT_EQ(lines[3]["memory"], json::parse(R"({"parameter": 512})"));
  EXPECT_TRUE(lines[4]["loss"].is_null());
  EXPECT_FALSE(lines[4].contains("accuracy"));
  EXPECT_EQ(lines[5]["path"], "runs/step_4");
  EXPECT_EQ(lines[6]["tables"], "a\nb");
  EXPECT_EQ(lines[7]["best"]["step"], 2);
  EXPECT_EQ(lines[8]["text"], "not \xEF\xBF\xBD UTF-8\n");
}

TEST_F(JsonlLoggerTest, LinesAfterTheCheckpointAreDropped) {
  {
    JsonlLogger log = logger();
    StartEvent start;
    start.steps = 9;
    log.start(start);
    for (int64_t step = 1; step <= 3; ++step) log.step({.step = step, .steps = 9});
    log.flush();
  }
  AppendFile(path_).append(R"({"event": "step", "st)");  // the process was killed while it wrote
  JsonlLogger log = logger();
  log.start(after(2));
  log.step({.step = 3, .steps = 9});
  log.flush();
  EXPECT_THAT(names_of(lines_of(path_)), ElementsAre("start 0", "step 1", "step 2", "start 2", "step 3"));
  EXPECT_THAT(notes_, IsEmpty());
}

// Starts that were cut off before their first checkpoint differ in nothing but times. What one left is kept until the
// next one has written the same.
TEST_F(JsonlLoggerTest, AStartThatBeginsAgainAndAgainLeavesNothing) {
  const auto step = [](int64_t number, double seconds) {
    return StepEvent{.step = number, .steps = 9, .tokens = 5 * number, .seconds = seconds};
  };
  const fs::path before = path_.string() + ".before";
  for (const double seconds : {1.0, 2.0, 3.0}) {
    JsonlLogger log = logger();
    log.start({});
    log.step(step(1, seconds));
    log.step(step(2, seconds));
    log.flush();
    EXPECT_FALSE(fs::exists(before));
  }
  JsonlLogger log = logger();
  log.start({});
  EXPECT_THAT(names_of(lines_of(before)), ElementsAre("start 0", "step 1", "step 2"));
  log.step(step(1, 4.0));
  log.flush();
  EXPECT_TRUE(fs::exists(before));
  log.step(step(2, 4.0));
  log.flush();
  EXPECT_FALSE(fs::exists(before));

  // Starts that were cut off before they wrote anything, or more than their first line, change nothing in that.
  logger().start({});
  EXPECT_TRUE(fs::exists(before));
  EXPECT_FALSE(fs::exists(path_));
  for (const bool writes_a_line : {false, true}) {
    JsonlLogger cut_off = logger();
    cut_off.start({});
    if (writes_a_line) cut_off.flush();
  }
  JsonlLogger last = logger();
  last.start({});
  last.step(step(1, 5.0));
  last.step(step(2, 5.0));
  last.flush();
  EXPECT_FALSE(fs::exists(before));
}

TEST_F(JsonlLoggerTest, DamagedLinesAreKeptAside) {
  const std::string whole = R"({"event": "step", "step": 1})", other = R"({"event": "step", "step": 2})";
  const std::string text = whole + "\n[1]\n" + R"({"event": "step", "step": "x"})" + "\n{\n" + other + "\n";
  write_file(path_, text);
  JsonlLogger log = logger();
  log.start(after(2));
  log.flush();
  EXPECT_THAT(names_of(lines_of(path_)), ElementsAre("step 1", "step 2", "start 2"));
  EXPECT_EQ(read_file(path_.string() + ".damaged"), text);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("is kept as log.jsonl.damaged"), HasSubstr("rows before step 3 are")));
}

// A run that is stopped and continues tells of every step once.
TEST_F(JsonlLoggerTest, OfARunThatContinues) {
  const TrainConfig config =
      testing::tiny_train_config({"logging={jsonl: true, csv: false, every: 4}", "trainer.steps=12"});
  const fs::path run = folder_ / "run";
  for (const int64_t stop : {7, 0}) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = run;
    options.log = nullptr;
    options.stop_requested = [taken = int64_t{0}, stop]() mutable { return stop > 0 && taken++ == stop; };
    train(context, config, options);
  }
  EXPECT_THAT(names_of(lines_of(run / "log.jsonl")),
              ElementsAre("start 0", "step 1", "step 4", "checkpoint 7", "end 7", "start 7", "step 8", "evaluation 10",
                          "checkpoint 10", "step 12", "evaluation 12", "checkpoint 12", "end 12"));
  EXPECT_FALSE(fs::exists(run / "metrics.csv"));
}

}  // namespace
}  // namespace heddle::jsonl_logger_test
