// The event files of runs, as TensorBoard reads them.
#include "trainers/logging/tensorboard_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/trainer.h"

namespace heddle::tensorboard_logger_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

// What read_events.py prints of a folder; null when TensorBoard cannot read it.
json events_of(const fs::path& folder) {
  const std::string command =
      "python3 '" HEDDLE_SOURCE_DIR "/tests/trainers/read_events.py' '" + folder.string() + "' 2> /dev/null";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  std::array<char, 4096> part{};
  for (size_t read; (read = std::fread(part.data(), 1, part.size(), pipe)) > 0;) text.append(part.data(), read);
  return ::pclose(pipe) == 0 ? json::parse(text) : json();
}

size_t event_files(const fs::path& folder) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
  }
  return files;
}

class TensorBoardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("python3 -c 'import tensorboard.backend.event_processing.event_accumulator' > /dev/null 2>&1") !=
        0) {
      GTEST_SKIP() << "python3 has no tensorboard";
    }
  }
  testing::TempFolder folder_;
};

StepEvent step_event(int64_t step) {
  StepEvent event{.step = step, .steps = 100, .tokens = 64, .loss = 1.0 / static_cast<double>(step)};
  event.gradient_norm = 2.0 * static_cast<double>(step);
  event.learning_rate = 0.125;
  event.seconds = 0.5 * static_cast<double>(step);
  event.category_peaks[static_cast<size_t>(MemoryCategory::activation)] = size_t{3} << 20;
  return event;
}

TEST_F(TensorBoardTest, NumbersAndTextsAreThoseThatWereTold) {
  TensorBoardLogger logger(folder_.path(), {.every = 2});
  StartEvent start;
  start.steps = 100;
  logger.start(start);
  for (int64_t step = 1; step <= 5; ++step) logger.step(step_event(step));
  logger.evaluation({.step = 5, .loss = 0.75, .accuracy = 0.5});
  logger.sample({.step = 5, .text = "And it\ncame"});
  logger.flush();
  const json events = events_of(folder_.path());
  EXPECT_EQ(events["scalars"]["train/loss"], json::parse("[[1, 1.0], [2, 0.5], [4, 0.25]]"));
  EXPECT_EQ(events["scalars"]["train/gradient_norm"], json::parse("[[1, 2.0], [2, 4.0], [4, 8.0]]"));
  EXPECT_EQ(events["scalars"]["train/learning_rate"], json::parse("[[1, 0.125], [2, 0.125], [4, 0.125]]"));
  EXPECT_EQ(events["scalars"]["train/tokens_per_second"], json::parse("[[1, 128.0], [2, 128.0], [4, 128.0]]"));
  EXPECT_EQ(events["scalars"]["validation/loss"], json::parse("[[5, 0.75]]"));
  EXPECT_EQ(events["scalars"]["validation/accuracy"], json::parse("[[5, 0.5]]"));
  EXPECT_EQ(events["scalars"]["memory/activation"], json::parse("[[1, 3.0], [5, 3.0]]"));
  EXPECT_FALSE(events["scalars"].contains("memory/cache"));
  EXPECT_EQ(events["texts"]["sample"], json::parse(R"([[5, "    And it\n    came"]])"));
}

// Steps that a killed run had told and its successor takes again are shown once, with the later numbers.
TEST_F(TensorBoardTest, ALaterStartTakesThePlaceOfStepsAfterIt) {
  StartEvent start;
  start.steps = 100;
  {
    TensorBoardLogger logger(folder_.path());
    logger.start(start);
    for (int64_t step = 1; step <= 5; ++step) logger.step(step_event(step));
    logger.flush();
  }
  start.step = 2;
  TensorBoardLogger logger(folder_.path());
  logger.start(start);
  StepEvent again = step_event(3);
  again.loss = 8.0;
  logger.step(again);
  logger.flush();
  EXPECT_EQ(event_files(folder_.path()), 2u);
  EXPECT_EQ(events_of(folder_.path())["scalars"]["train/loss"], json::parse("[[1, 1.0], [2, 0.5], [3, 8.0]]"));
}

TEST_F(TensorBoardTest, ARunIsShownWhole) {
  const TrainConfig config = testing::tiny_train_config({"logging.tensorboard=true", "trainer.steps=12"});
  for (const int64_t stop : {7, 0}) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / "run";
    options.log = nullptr;
    options.stop_requested = [taken = int64_t{0}, stop]() mutable { return stop > 0 && taken++ == stop; };
    train(context, config, options);
  }
  const json events = events_of(folder_ / "run");
  EXPECT_EQ(events["scalars"]["train/loss"].size(), 12u);
  EXPECT_EQ(events["scalars"]["validation/loss"].size(), 2u);  // after steps 10 and 12
  EXPECT_GT(events["scalars"]["memory/parameter"][0][1], 0.0);
}

// Without Python: the numbers, which stand behind their names, and which files there are.
TEST(TensorBoardFilesTest, HoldWhatWasTold) {
  const testing::TempFolder folder;
  TensorBoardLogger logger(folder.path(), {.every = 2});
  StartEvent start;
  start.step = 2;
  start.steps = 100;
  logger.start(start);
  for (int64_t step = 3; step <= 6; ++step) logger.step(step_event(step));
  logger.flush();
  const std::string bytes = read_file(fs::directory_iterator(folder.path())->path());
  const auto number = [](float value) {
    std::string text(sizeof value, '\0');
    std::memcpy(text.data(), &value, sizeof value);
    return "\x15" + text;
  };
  EXPECT_THAT(bytes, HasSubstr("\x10\x03\x3A\x02\x08\x01"));  // from step 3 on all begins anew
  EXPECT_THAT(bytes, HasSubstr("train/loss" + number(0.25F)));
  EXPECT_THAT(bytes, Not(HasSubstr("train/loss" + number(0.2F)))) << "step 5 is left out";
  EXPECT_THAT(bytes, HasSubstr("train/gradient_norm" + number(12.0F)));
  EXPECT_THAT(bytes, HasSubstr("train/tokens_per_second" + number(128.0F)));  // of steps 5 and 6
  EXPECT_THAT(bytes, HasSubstr("memory/activation" + number(3.0F)));
}

TEST(TensorBoardFilesTest, AreWrittenWhenTheyAreAskedFor) {
  const testing::TempFolder folder;
  for (const bool is_on : {false, true}) {
    const TrainConfig config = testing::tiny_train_config(
        {std::string("logging.tensorboard=") + (is_on ? "true" : "false"), "trainer.steps=2"});
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder / (is_on ? "on" : "off");
    options.log = nullptr;
    train(context, config, options);
    EXPECT_EQ(event_files(options.folder), is_on ? 1u : 0u);
    train(context, config, options);  // nothing is left to do
    EXPECT_EQ(event_files(options.folder), is_on ? 1u : 0u);
  }
}

}  // namespace
}  // namespace heddle::tensorboard_logger_test
