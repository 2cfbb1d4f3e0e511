#include "trainers/logging/csv_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kHeader = "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

class CsvLoggerTest : public ::testing::Test {
 protected:
  std::string refusal(const std::string& text, int64_t last_step) {
    write_file(path_, text);
    try {
      logger_.load(path_, last_step);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

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

TEST_F(CsvLoggerTest, RowsAfterTheCheckpointAreDropped) {
  const std::string rows = kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n";
  write_file(path_, rows + "3,2,3,4,5,,\n4,2,3,4");
  logger_.load(path_, 2);
  logger_.flush();
  EXPECT_EQ(read_file(path_), rows);
}

TEST_F(CsvLoggerTest, AStartFromACheckpointTakesTheRowsOfItsRun) {
  const fs::path run = folder_ / "other";
  fs::create_directories(run / "checkpoints" / "step_2");
  write_file(run / "metrics.csv", kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n3,2,3,4,5,,\n");
  StartEvent event;
  event.step = 2;
  event.checkpoint = run / "checkpoints" / "step_2";
  logger_.start(event);
  EXPECT_EQ(read_file(path_), kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n");
  EXPECT_TRUE(notes_.empty());
}

TEST_F(CsvLoggerTest, ALostFileIsNoted) {
  const fs::path run = folder_ / "other";
  fs::create_directories(run / "checkpoints" / "step_2");
  StartEvent event;
  event.step = 2;
  event.checkpoint = run / "checkpoints" / "step_2";
  logger_.start(event);
  EXPECT_EQ(read_file(path_), kHeader);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("other/metrics.csv is missing; the rows up to step 2 are lost")));
}

TEST_F(CsvLoggerTest, DamagedFilesAreRefused) {
  EXPECT_EQ(refusal(kHeader + "1,,,,,,\n2,,,,,,\n", 2), "accepted");
  EXPECT_EQ(refusal(kHeader + "5,,,,,,\n6,,,,,,\n", 6), "accepted");  // the file was once lost
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n3,,,,,,\n", 3), HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n2,,", 2), HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n", 2), HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal("a,b\n", 0), HasSubstr("the first line"));
}

}  // namespace
}  // namespace heddle
