#include "trainers/logging/csv_logger.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle::csv_logger_test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kHeader = "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

class CsvLoggerTest : public ::testing::Test {
 protected:
  // Goes on after `step` in the run folder that the file lies in.
  void go_on(int64_t step) {
    StartEvent event;
    event.step = step;
    event.checkpoint = folder_ / "checkpoints" / fmt::format("step_{}", step);
    fs::create_directories(*event.checkpoint);
    logger_.start(event);
  }
  std::string aside(const std::string& suffix) const { return read_file(path_.string() + "." + suffix); }

  testing::TempFolder folder_;
  fs::path path_ = folder_ / "metrics.csv";
  std::vector<std::string> notes_;
  CsvLogger logger_{path_, [this](const std::string& line) { notes_.push_back(line); }};
};

TEST_F(CsvLoggerTest, EmptyFieldsAreWhatWasNotMeasured) {
  logger_.start({});
  EXPECT_FALSE(fs::exists(path_));
  logger_.step({.step = 1, .total_tokens = 64, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.001});
  logger_.step({.step = 2, .total_tokens = 128, .loss = 2.25, .gradient_norm = 0.5, .learning_rate = 0.002});
  logger_.evaluation({.step = 2, .loss = 2.125, .accuracy = 0.5});
  logger_.step({.step = 3, .total_tokens = 192, .loss = 1e-12, .gradient_norm = 1e9, .learning_rate = 0.002});
  logger_.evaluation({.step = 3, .loss = 2.0});
  logger_.flush();
  logger_.flush();
  EXPECT_EQ(read_file(path_), kHeader +
                                  "1,64,2.5,1,0.001,,\n"
                                  "2,128,2.25,0.5,0.002,2.125,0.5\n"
                                  "3,192,1e-12,1e+09,0.002,2,\n");
}

// Not what a step without an evaluation has.
TEST_F(CsvLoggerTest, NumbersThatAreNotFiniteAreNoEmptyFields) {
  const double nan = std::copysign(std::nan(""), -1.0);
  logger_.start({});
  logger_.step({.step = 1, .total_tokens = 64, .loss = nan, .gradient_norm = nan, .learning_rate = 0.001});
  logger_.evaluation({.step = 1, .loss = nan});
  logger_.step({.step = 2, .total_tokens = 128, .loss = 2.0, .gradient_norm = 1.0, .learning_rate = 0.001});
  logger_.evaluation({.step = 2, .loss = INFINITY, .accuracy = 0.5});
  logger_.flush();
  EXPECT_EQ(read_file(path_), kHeader + "1,64,nan,nan,0.001,nan,\n2,128,2,1,0.001,inf,0.5\n");
}

TEST_F(CsvLoggerTest, RowsAreAppended) {
  logger_.start({});
  logger_.step({.step = 1, .total_tokens = 64, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.001});
  logger_.flush();
  const std::string mark = "marked by the test\n";  // would be lost if the file were written anew
  write_file(folder_ / "copy", read_file(path_));
  AppendFile(path_).append(mark);
  logger_.step({.step = 2, .total_tokens = 128, .loss = 2.25, .gradient_norm = 0.5, .learning_rate = 0.002});
  logger_.flush();
  EXPECT_EQ(read_file(path_), read_file(folder_ / "copy") + mark + "2,128,2.25,0.5,0.002,,\n");
}

TEST_F(CsvLoggerTest, OfEveryFewStepsThoseWithAnEvaluationHaveARowToo) {
  CsvLogger logger(path_, {}, {.every = 4});
  logger.start({});
  for (int64_t step = 1; step <= 10; ++step) {
    logger.step({.step = step, .steps = 10, .total_tokens = 2 * step, .loss = 1.0, .gradient_norm = 1.0});
    if (step % 3 == 0) logger.evaluation({.step = step, .loss = 2.0});
    if (step % 5 == 0) logger.flush();
  }
  EXPECT_EQ(read_file(path_), kHeader +
                                  "1,2,1,1,0,,\n3,6,1,1,0,2,\n4,8,1,1,0,,\n6,12,1,1,0,2,\n8,16,1,1,0,,\n"
                                  "9,18,1,1,0,2,\n10,20,1,1,0,,\n");
}

// The checkpoint may be of a step between two rows; whether rows are missing is known by how far apart they are.
TEST_F(CsvLoggerTest, RowsThatAreFarApartAreNotMissing) {
  const std::string rows = kHeader + "1,,,,,,\n4,,,,,,\n8,,,,,,\n";
  write_file(path_, rows + "12,,,,,,\n");
  go_on(11);
  EXPECT_EQ(read_file(path_), rows);
  EXPECT_TRUE(notes_.empty());
  go_on(12);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("rows before step 13 are missing or damaged")));
}

// Before the second row nothing shows how far they are apart but the config.
TEST_F(CsvLoggerTest, NoRowIsMissingThatTheConfigDoesNotHold) {
  StartEvent event;
  fs::create_directories(folder_ / "checkpoints/step");
  event.checkpoint = folder_ / "checkpoints/step";
  const std::string first = kHeader + "1,,,,,,\n", second = first + "10,,,,,,\n";
  const auto notes_at = [&](int64_t step, const std::string& rows) {
    notes_.clear();
    write_file(path_, rows);
    event.step = step;
    CsvLogger(path_, [this](const std::string& line) { notes_.push_back(line); }, {.every = 10}).start(event);
    return notes_.size();
  };
  for (int64_t step = 1; step <= 9; ++step) EXPECT_EQ(notes_at(step, first), 0u) << step;
  for (int64_t step = 10; step <= 19; ++step) EXPECT_EQ(notes_at(step, second), 0u) << step;
  EXPECT_EQ(notes_at(10, first), 1u);
  EXPECT_EQ(notes_at(20, second), 1u);
  EXPECT_EQ(notes_at(5, kHeader), 1u);
}

TEST_F(CsvLoggerTest, RowsAfterTheCheckpointAreDropped) {
  const std::string rows = kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n";
  write_file(path_, rows + "3,2,3,4,5,,\n4,2,3,4");
  go_on(2);
  logger_.flush();
  EXPECT_EQ(read_file(path_), rows);
  EXPECT_TRUE(notes_.empty());
}

TEST_F(CsvLoggerTest, AStartFromACheckpointTakesTheRowsOfItsRun) {
  const fs::path run = folder_ / "other";
  fs::create_directories(run / "checkpoints" / "step_2");
  const std::string rows = kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n";
  write_file(run / "metrics.csv", rows + "3,2,3,4,5,,\n");
  StartEvent event;
  event.step = 2;
  event.checkpoint = run / "checkpoints" / "step_2";
  logger_.start(event);
  EXPECT_EQ(read_file(path_), rows);
  EXPECT_EQ(read_file(run / "metrics.csv"), rows + "3,2,3,4,5,,\n");
  EXPECT_TRUE(notes_.empty());
}

// The checkpoints may lie on another disk, where there are no metrics, or those of somebody else.
TEST_F(CsvLoggerTest, TheFileLiesBesideALinkToTheCheckpoints) {
  const std::string rows = kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n";
  for (const bool has_another : {false, true}) {
    const fs::path run = folder_ / (has_another ? "a" : "b"), disk = folder_ / (has_another ? "c" : "d");
    fs::create_directories(disk / "checkpoints" / "step_2");
    fs::create_directories(run);
    fs::create_directory_symlink(disk / "checkpoints", run / "checkpoints");
    if (has_another) write_file(disk / "metrics.csv", kHeader + "1,7,7,7,7,,\n");
    write_file(run / "metrics.csv", rows);
    CsvLogger logger(run / "metrics.csv", [this](const std::string& line) { notes_.push_back(line); });
    StartEvent event;
    event.step = 2;
    event.checkpoint = run / "checkpoints" / "step_2";
    logger.start(event);
    logger.flush();
    EXPECT_EQ(read_file(run / "metrics.csv"), rows);
    EXPECT_TRUE(notes_.empty());
  }
}

TEST_F(CsvLoggerTest, ALostFileIsNoted) {
  go_on(2);
  EXPECT_EQ(read_file(path_), kHeader);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("metrics.csv is missing; the rows up to step 2 are lost")));
}

// What can be read is kept, and the file as it was, too.
TEST_F(CsvLoggerTest, ADamagedFileDoesNotEndARun) {
  const std::string one = "1,,,,,,\n", two = "2,,,,,,\n", three = "3,,,,,,\n";
  struct Case {
    std::string text, kept;
  };
  int number = 0;
  for (const Case& damaged :
       {Case{kHeader + one + "2,,\n" + three, kHeader + one + three},
        Case{kHeader + one + "garbage\n" + two + three, kHeader + one + two + three},
        Case{kHeader + one + two + "3,,", kHeader + one + two},
        Case{kHeader + two + one + three, kHeader + two + three}, Case{"a,b\n" + one, kHeader + one},
        Case{std::string("\0\0\0\0", 4), kHeader}, Case{"", kHeader}}) {
    notes_.clear();
    write_file(path_, damaged.text);
    go_on(3);
    logger_.flush();
    EXPECT_EQ(read_file(path_), damaged.kept);
    EXPECT_EQ(aside(++number == 1 ? "damaged" : fmt::format("damaged.{}", number)), damaged.text);
    EXPECT_THAT(notes_, ElementsAre(HasSubstr("is kept as metrics.csv.damaged"), HasSubstr("rows before step 4 are")));
  }
  notes_.clear();
  write_file(path_, kHeader + "2,,,,,,\n3,,,,,,\n");  // the file was once lost
  go_on(3);
  EXPECT_EQ(read_file(path_), kHeader + "2,,,,,,\n3,,,,,,\n");
  EXPECT_TRUE(notes_.empty());
}

// Whether what it leads to is there or not.
TEST_F(CsvLoggerTest, ALinkStaysALink) {
  fs::create_directory(folder_ / "other");
  const fs::path target = folder_ / "other/rows.csv";
  fs::create_symlink("other/rows.csv", path_);
  for (const int step : {1, 2}) {
    CsvLogger logger(path_, [](const std::string&) {});
    logger.start({});
    logger.step({.step = step, .total_tokens = 64, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.001});
    logger.flush();
    EXPECT_EQ(fs::read_symlink(path_), "other/rows.csv");
    EXPECT_EQ(read_file(target), kHeader + fmt::format("{},64,2.5,1,0.001,,\n", step));
  }
}

TEST_F(CsvLoggerTest, AFolderOfItsNameIsAnErrorAtOnce) {
  fs::create_directory(path_);
  EXPECT_THAT([&] { logger_.start({}); },
              ::testing::ThrowsMessage<Error>(path_.string() + " is a folder, expected a file"));
}

// A run that goes on would wait for somebody to write into it.
TEST_F(CsvLoggerTest, APipeOfItsNameIsAnErrorAtOnce) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  const auto refusal = ::testing::ThrowsMessage<Error>(path_.string() + " is a pipe, expected a file");
  EXPECT_THAT([&] { logger_.start({}); }, refusal);
  StartEvent event;
  event.step = 1;
  event.checkpoint = folder_ / "checkpoints/step_1";
  fs::create_directories(*event.checkpoint);
  EXPECT_THAT([&] { logger_.start(event); }, refusal);
  CsvLogger elsewhere(folder_ / "other.csv", [](const std::string&) {});
  fs::rename(path_, folder_ / "other.csv");
  EXPECT_THAT([&] { elsewhere.start(event); }, ::testing::Throws<Error>());
}

TEST_F(CsvLoggerTest, SkippedStepsAreCountedWhereTheyMayBe) {
  const std::string with =
      "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy,skipped_steps\n";
  StartEvent event;
  event.skip_nonfinite = 1;
  logger_.start(event);
  logger_.step({.step = 1, .total_tokens = 64, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.1});
  logger_.step({.step = 2,
                .total_tokens = 128,
                .loss = NAN,
                .gradient_norm = INFINITY,
                .learning_rate = 0.1,
                .skipped_steps = 1});
  logger_.evaluation({.step = 2, .loss = 2.0});
  logger_.step(
      {.step = 3, .total_tokens = 192, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.1, .skipped_steps = 1});
  logger_.flush();
  const std::string rows = "1,64,2.5,1,0.1,,,0\n2,128,nan,inf,0.1,2,,1\n3,192,2.5,1,0.1,,,1\n";
  EXPECT_EQ(read_file(path_), with + rows);
  // A run that goes on with another setting brings its rows into the form of its own.
  go_on(2);
  EXPECT_EQ(read_file(path_), kHeader + "1,64,2.5,1,0.1,,\n2,128,nan,inf,0.1,2,\n");
  event.step = 2;
  event.checkpoint = folder_ / "checkpoints/step_2";
  logger_.start(event);
  EXPECT_EQ(read_file(path_), with + "1,64,2.5,1,0.1,,,0\n2,128,nan,inf,0.1,2,,0\n");
  EXPECT_TRUE(notes_.empty());
}

// A run from the beginning does not cut the file of another one short.
TEST_F(CsvLoggerTest, AWholeFileIsNotOverwrittenByLess) {
  const std::string rows = kHeader + "1,,,,,,\n2,,,,,,\n3,,,,,,\n";
  StartEvent event;
  event.steps = 10;
  event.checkpoint_every = 2;
  write_file(path_, rows);
  logger_.start(event);
  logger_.flush();
  EXPECT_EQ(read_file(path_), kHeader);
  EXPECT_EQ(aside("before"), rows);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("metrics.csv is kept as metrics.csv.before")));
}

// However short it is, and whatever the config says of checkpoints.
TEST_F(CsvLoggerTest, AShortFileOfAnEarlierStartIsKept) {
  StartEvent event;
  event.steps = 10;
  const std::string rows = kHeader + "1,,,,,,\n2,,,,,,\n";
  write_file(path_, rows);
  logger_.start(event);
  EXPECT_FALSE(fs::exists(path_));
  EXPECT_EQ(aside("before"), rows);
  // The same rows, or some of them, are kept already, and more of them take their place.
  const std::string other = kHeader + "1,7,,,,,\n";
  for (const std::string& text : {rows, kHeader + "1,,,,,,\n", rows + "3,,,,,,\n", other, rows, kHeader}) {
    write_file(path_, text);
    logger_.start(event);
    EXPECT_FALSE(fs::exists(path_));
  }
  EXPECT_EQ(aside("before"), rows + "3,,,,,,\n");
  EXPECT_EQ(aside("before.2"), other);
  EXPECT_FALSE(fs::exists(path_.string() + ".before.3"));
}

}  // namespace
}  // namespace heddle::csv_logger_test
