// The other subcommands of `heddle`.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/cli/process.h"
#include "tests/cli/trained_test.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using ::testing::StartsWith;
using testing::TrainedTest;

TEST_F(TrainedTest, TrainingReportsAndPrintsTheSample) {
  ASSERT_EQ(training_.code, 0) << training_.err;
  EXPECT_THAT(training_.out, StartsWith("the "));
  EXPECT_THAT(training_.err, HasSubstr("step 40/40  loss "));
  EXPECT_THAT(training_.err, HasSubstr("k tokens/s"));
  EXPECT_THAT(training_.err, HasSubstr("nats/byte"));
}

TEST_F(TrainedTest, PipesInPlaceOfFilesOfARunAreRefused) {
  const auto go_on = [&] { return run_heddle({"train", run_, "--device", "cpu", "--threads", "1"}); };
  for (const char* name : {"run/config.yaml", "run/metrics.csv"}) expect_no_pipe(name, go_on);
  expect_no_pipe("run/config.yaml", [&] { return train(run_, {}); });
  expect_no_pipe("run/metrics.csv", [&] { return run_heddle({"plot", run_}); });
}

TEST(CommandTest, HelpAndInfo) {
  const Finished help = run_heddle({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* name : {"train", "eval", "generate", "info"}) {
    EXPECT_THAT(help.out, HasSubstr(name));
    EXPECT_EQ(run_heddle({name, "--help"}).code, 0);
  }
  EXPECT_THAT(run_heddle({"--version"}).out, StartsWith("heddle 0."));
  const Finished info = run_heddle({"info"});
  EXPECT_EQ(info.code, 0);
  for (const char* word : {"heddle 0.", "compiler", "cuda", "cpu", "Eigen 3.", "yaml-cpp 0."}) {
    EXPECT_THAT(info.out, HasSubstr(word));
  }
}

// Whatever else an argument that is not known leaves missing.
TEST(CommandTest, AnUnknownOptionIsNamedBeforeWhatIsMissing) {
  for (const char* name : {"train", "tokenize", "eval", "generate", "export", "compare", "gradcheck", "memory",
                           "run-layer", "bench", "plot", "info"}) {
    const Finished refused = run_heddle({name, "--hlep"});
    EXPECT_EQ(refused.code, 2) << name;
    EXPECT_THAT(refused.err,
                StartsWith("error: the following argument was not expected: --hlep; did you mean '--help'?\n"))
        << name;
  }
  EXPECT_THAT(run_heddle({"tokenize", "a.txt", "--uot", "b.bin"}).err,
              StartsWith("error: the following argument was not expected: --uot; did you mean '--out'?"));
  EXPECT_THAT(run_heddle({"train", "a.yaml", "--steps", "3", "--verify-resum"}).err,
              HasSubstr("did you mean '--verify-resume'?"));
}

}  // namespace
}  // namespace heddle
