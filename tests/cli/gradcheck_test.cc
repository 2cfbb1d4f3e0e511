#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/cli/process.h"
#include "tests/terminal.h"

namespace heddle {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// Each of many elements is moved, which takes long.
TEST(GradcheckCommandTest, OnATerminalItSaysHowFarItIs) {
  const testing::Terminal terminal;
  testing::Process process({"gradcheck", "softmax", "--shape", "x=30x100", "--device", "cpu"},
                           {.err = terminal.path()});
  std::string shown;
  while (process.running()) {
    shown += terminal.shown();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(process.wait(), 0);
  shown += terminal.shown();
  EXPECT_THAT(shown, ContainsRegex("softmax: [0-9]+ of 3000 derivatives"));
  EXPECT_TRUE(shown.ends_with("\r\033[K")) << shown;  // the table has the line
  EXPECT_THAT(process.out(), HasSubstr("1 case, 0 wrong, 0 undecided\n"));
}

}  // namespace
}  // namespace heddle
