// `heddle plot` as a user meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/cli/trained_test.h"

namespace heddle {
namespace {

using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using ::testing::StartsWith;

class PlotCommandTest : public testing::TrainedTest {};

TEST_F(PlotCommandTest, DrawsTheLossesOfARun) {
  const std::string out = (folder_ / "chart.svg").string();
  Finished plot = run_heddle({"plot", run_, "--out", out});
  EXPECT_EQ(plot.code, 0) << plot.err;
  EXPECT_THAT(plot.out, HasSubstr("run validation_loss"));
  EXPECT_THAT(plot.out, HasSubstr("written to " + out));
  EXPECT_THAT(read_file(out), StartsWith("<svg "));
  plot = run_heddle(
      {"plot", run_, "--metric", "gradient_norm", "--log", "--x", "tokens", "--smooth", "1", "--out", "/dev/stdout"});
  EXPECT_EQ(plot.code, 0) << plot.err;
  EXPECT_THAT(plot.out, StartsWith("<svg ")) << "nothing else is written to where the chart goes";
  EXPECT_THAT(plot.out, HasSubstr("gradient_norm</text>"));
  EXPECT_THAT(plot.err, HasSubstr("run gradient_norm"));
  EXPECT_THAT(run_heddle({"plot", run_, "--out", "/dev/null"}).out, HasSubstr("run validation_loss"));
}

TEST_F(PlotCommandTest, SaysWhatIsWrong) {
  const auto error_of = [&](const std::vector<std::string>& arguments, int code) {
    std::vector<std::string> all = {"plot"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Finished plot = run_heddle(all);
    EXPECT_EQ(plot.code, code) << plot.err;
    return plot.err;
  };
  const std::string out = (folder_ / "chart.svg").string();
  EXPECT_THAT(error_of({folder_.path().string()}, 2), HasSubstr("holds no metrics.csv"));
  EXPECT_THAT(error_of({run_, "--metric", "lss", "--out", out}, 2), HasSubstr("did you mean 'loss'?"));
  EXPECT_THAT(error_of({run_, "--x", "time"}, 2), HasSubstr("expected one of step, tokens"));
  EXPECT_THAT(error_of({run_, "--smooth", "-1"}, 2), HasSubstr("--smooth: found '-1'"));
  EXPECT_THAT(error_of({run_, "--out", (folder_ / "no/chart.svg").string()}, 2), HasSubstr("--out: "));
  EXPECT_THAT(error_of({}, 2), HasSubstr("runs is required"));
  EXPECT_EQ(error_of({run_, run_ + "/metrics.csv", "--out", out}, 2),
            "error: " + run_ + "/metrics.csv is given twice\n");
  EXPECT_THAT(error_of({run_, "--metric", "loss,loss"}, 2), StartsWith("error: --metric: loss is given twice\n"));
  AppendFile(std::filesystem::path(run_) / "metrics.csv").append("garbage\n");
  EXPECT_THAT(error_of({run_, "--out", out}, 1), HasSubstr("metrics.csv:"));
  EXPECT_FALSE(std::filesystem::exists(out));
}

}  // namespace
}  // namespace heddle
