#include "trainers/logging/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

TEST(ProgressTest, WritesPlainLinesWhereThereIsNoTerminal) {
  const testing::TempFolder folder;
  const std::string path = (folder / "log").string();
  std::FILE* out = std::fopen(path.c_str(), "w");
  {
    Progress progress(out, 0, 100);
    for (int64_t step = 1; step <= 100; ++step) progress.step(step, 2.0, 64, size_t{3} << 20);
    progress.say("done");
  }
  std::fclose(out);
  const std::string text = read_file(path);
  EXPECT_THAT(text, ::testing::StartsWith("step 1/100  loss 2.0000  "));
  EXPECT_THAT(text, ::testing::HasSubstr("\nstep 100/100  loss 2.0000  "));
  EXPECT_THAT(text, ::testing::HasSubstr("ETA 0:00  peak 3.0 MiB\ndone\n"));
  EXPECT_THAT(text, ::testing::Not(::testing::HasSubstr("\r")));
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 6);
}

TEST(ProgressTest, Durations) {
  EXPECT_EQ(format_duration(0.4), "0:00");
  EXPECT_EQ(format_duration(65), "1:05");
  EXPECT_EQ(format_duration(7439), "2:03:59");
}

}  // namespace
}  // namespace heddle
