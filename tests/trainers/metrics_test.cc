#include "trainers/logging/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

const std::string kHeader = "step,tokens,loss,gradient_norm,learning_rate,validation_loss,validation_accuracy\n";

class MetricsTest : public ::testing::Test {
 protected:
  std::string refusal(const std::string& text, int64_t last_step) {
    write_file(path_, text);
    try {
      Metrics metrics(path_);
      metrics.load(path_, last_step);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

  testing::TempFolder folder_;
  std::filesystem::path path_ = folder_ / "metrics.csv";
};

TEST_F(MetricsTest, EmptyFieldsAreWhatWasNotMeasured) {
  Metrics metrics(path_);
  metrics.add({.step = 1, .tokens = 64, .loss = 2.5, .gradient_norm = 1.0, .learning_rate = 0.001});
  metrics.add({.step = 2,
               .tokens = 128,
               .loss = 2.25,
               .gradient_norm = 0.5,
               .learning_rate = 0.002,
               .validation_loss = 2.125,
               .validation_accuracy = 0.5});
  metrics.save();
  EXPECT_EQ(read_file(path_), kHeader + "1,64,2.5,1,0.001,,\n2,128,2.25,0.5,0.002,2.125,0.5\n");
}

TEST_F(MetricsTest, LoadingForgetsWhatCameAfterTheCheckpoint) {
  const std::string rows = kHeader + "1,2,3,4,5,,\n2,2,3,4,5,,\n";
  write_file(path_, rows + "3,2,3,4,5,,\n4,2,3,4");
  Metrics metrics(path_);
  metrics.load(path_, 2);
  metrics.save();
  EXPECT_EQ(read_file(path_), rows);
}

TEST_F(MetricsTest, DamagedFilesAreRefused) {
  EXPECT_EQ(refusal(kHeader + "1,,,,,,\n2,,,,,,\n", 2), "accepted");
  EXPECT_EQ(refusal(kHeader + "5,,,,,,\n6,,,,,,\n", 6), "accepted");  // the file was once lost
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n3,,,,,,\n", 3), ::testing::HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n2,,", 2), ::testing::HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal(kHeader + "1,,,,,,\n", 2), ::testing::HasSubstr("the row after step 1 is missing"));
  EXPECT_THAT(refusal("a,b\n", 0), ::testing::HasSubstr("the first line"));
}

}  // namespace
}  // namespace heddle
