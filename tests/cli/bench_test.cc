// heddle bench: what it refuses before it measures, and what it writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/bench_files.h"
#include "core/runtime/error.h"
#include "tests/cli/process.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::run_heddle;
using testing::TempFolder;

Finished bench(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"bench", "srms_norm", "--quantity", "memory"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_heddle(arguments);
}

std::string refusal(const std::vector<std::string>& more) {
  const Finished finished = bench(more);
  EXPECT_EQ(finished.code, 2) << finished.out;
  EXPECT_THAT(finished.out, IsEmpty());
  return finished.err;
}

TEST(BenchCommand, RefusesWhatWouldMeasureNothing) {
  EXPECT_THAT(refusal({"--config", "plian"}),
              AllOf(HasSubstr("found no config 'plian' in srms_norm, expected one of plain, residual, "),
                    HasSubstr("did you mean 'plain'?")));
  EXPECT_THAT(refusal({"--config", "plain,nope"}), HasSubstr("found no config 'nope'"));
  EXPECT_THAT(refusal({"--n", "4611686018427387904"}), HasSubstr("plain at n = 4611686018427387904: shape (4, "));
  EXPECT_THAT(refusal({"--pass", "fwd,bwdd"}), HasSubstr("--pass: found 'bwdd'"));
  EXPECT_THAT(refusal({"srms_nrm"}),
              HasSubstr("'srms_nrm' is neither a suite nor an operator; did you mean 'srms_norm'?"));
  EXPECT_THAT(refusal({"qqqqqqqq"}),
              AllOf(HasSubstr("; suites: cross_entropy, "), HasSubstr("; operators: layer_norm, ")));
  const Finished timed = run_heddle({"bench", "srms_norm", "--device", "meta", "--quantity", "speed"});
  EXPECT_EQ(timed.code, 2);
  EXPECT_THAT(timed.err, HasSubstr("nothing can be timed on device meta"));
}

// Rows of the same name could not be told apart.
TEST(BenchCommand, RefusesWhatIsGivenTwice) {
  const TempFolder folder;
  const std::string suite = (folder / "srms_norm.yaml").string(), link = (folder / "link.yaml").string();
  const auto twice = [](const std::string& first, const std::string& second) {
    const Finished finished = run_heddle({"bench", first, second, "--quantity", "memory"});
    EXPECT_EQ(finished.code, 2) << finished.out;
    return finished.err;
  };
  fs::create_symlink(suite, link);
  EXPECT_EQ(twice("glu_product", "glu_product"), "error: glu_product is given twice\n");
  write_file(suite, "suite: mine\nconfigs: {}\n");
  EXPECT_EQ(twice(suite, link), "error: " + link + " is given twice\n");
  EXPECT_EQ(refusal({"--pass", "fwd,bwd,fwd"}), "error: --pass: fwd is given twice\nsee heddle bench --help\n");
  write_file(suite, "configs: {}\n");
  EXPECT_THAT(refusal({suite}), HasSubstr(suite + " is a second suite of the name 'srms_norm'"));
}

// Cases have shapes of their own: --n chooses among them.
TEST(BenchCommand, SizesChooseAmongCases) {
  const auto cases = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"bench", "glu_product", "--quantity", "memory", "--pass", "fwd"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  };
  const Finished none = cases({"--n", "7"});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("found no case of size n = 7 in glu_product, whose shapes are fixed, expected one of "
                                  "5500, 21000"));
  const Finished some = cases({"--n", "5500"});
  EXPECT_EQ(some.code, 0) << some.err;
  EXPECT_THAT(some.out, AllOf(HasSubstr(" 5500 "), ::testing::Not(HasSubstr(" 21000 "))));
  // The name of a case holds commas.
  const Finished one = cases({"--config", "glu_product {act: silu} (5, 1100) (5, 1100)"});
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(std::count(one.out.begin(), one.out.end(), '\n'), 2) << "a head and a row";
}

TEST(BenchCommand, PathsAreCheckedBeforeAnythingIsMeasured) {
  const TempFolder folder;
  const std::string missing = (folder / "missing" / "rows.json").string();
  EXPECT_THAT(refusal({"--json", missing}), HasSubstr("--json: " + (folder / "missing").string() + " is no folder"));
  EXPECT_THAT(refusal({"--csv", folder.path().string()}),
              HasSubstr("--csv: " + folder.path().string() + " is a folder"));
  write_file(folder / "file", "x");
  EXPECT_THAT(refusal({"--plot", (folder / "file" / "charts").string()}), HasSubstr("--plot: "));
}

// A config behind a good one.
TEST(BenchCommand, FaultsOfASuiteAreFoundBeforeAnythingIsMeasured) {
  const TempFolder folder;
  const std::string suite = (folder / "suite.yaml").string();
  write_file(suite,
             "n: [8]\nconfigs:\n  good: {operator: srms_norm, inputs: {x: [4, n]}, moved: {fwd: [x, y], bwd: [d_x]}}\n"
             "  bad: {operator: rms_norm, inputs: {x: [4, n], weight: [5]}, moved: {fwd: [x, y], bwd: [d_x]}}\n");
  const Finished finished = run_heddle({"bench", suite, "--json", (folder / "rows.json").string()});
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.out, IsEmpty());
  EXPECT_THAT(finished.err, HasSubstr(suite + ":4:3: configs.bad: at n = 8: [rms_norm] weight has shape (5)"));
  EXPECT_FALSE(fs::exists(folder / "rows.json"));
}

TEST(BenchCommand, WritesRowsAndCharts) {
  const TempFolder folder;
  const Finished finished = bench({"--config", "plain,residual", "--n", "8,16", "--pass", "fwd,bwd", "--json",
                                   (folder / "rows.json").string(), "--csv", (folder / "rows.csv").string(), "--plot",
                                   (folder / "charts").string()});
  ASSERT_EQ(finished.code, 0) << finished.err;
  const std::string csv = read_file(folder / "rows.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 2 * 2 * 2);
  EXPECT_THAT(csv, HasSubstr("srms_norm,plain,fwd,memory,8,bfloat16,meta,"));
  EXPECT_THAT(read_file(folder / "rows.json"), HasSubstr("\"n\": 16"));
  EXPECT_TRUE(fs::exists(folder / "charts" / "srms_norm_bwd_memory.svg"));
  EXPECT_TRUE(fs::exists(folder / "charts" / "srms_norm_fwd_memory.svg"));
}

// Bytes of training steps need neither data nor a GPU.
TEST(BenchCommand, MeasuresTrainingSteps) {
  const TempFolder folder;
  const std::string json = (folder / "rows.json").string();
  const Finished finished =
      run_heddle({"bench", "training", "--quantity", "memory", "--config", "train_toy_cpu", "--json", json});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(std::count(finished.out.begin(), finished.out.end(), '\n'), 2) << "a head and a row";
  EXPECT_THAT(read_file(json), AllOf(HasSubstr("\"config\": \"train_toy_cpu\""), HasSubstr("\"pass\": \"step\""),
                                     HasSubstr("\"n\": 4096"), HasSubstr("\"device\": \"meta\"")));
  const Finished sized = run_heddle({"bench", "training", "--quantity", "memory", "--n", "4096"});
  EXPECT_EQ(sized.code, 2);
  EXPECT_THAT(sized.err, HasSubstr("found size n = 4096 for training, expected none"));
  const std::string config = HEDDLE_SOURCE_DIR "/configs/bench/train_toy_cpu.yaml", before = read_file(config);
  const Finished over = run_heddle({"bench", "training", "--quantity", "memory", "--json", config});
  EXPECT_EQ(over.code, 2);
  EXPECT_EQ(read_file(config), before);
}

TEST(BenchCommand, AnInterruptKeepsWhatWasMeasured) {
  const TempFolder folder;
  testing::Process process({"bench", "srms_norm", "--device", "cpu", "--threads", "1", "--quantity", "memory", "--n",
                            "8,16,32,64,128,256,512,1024,2048,4096,8192", "--csv", (folder / "rows.csv").string()});
  while (process.running() && !fs::exists(folder / "rows.csv")) ::usleep(1000);
  process.send(SIGINT);
  const int code = process.wait();
  EXPECT_EQ(code, 130) << process.err();
  EXPECT_THAT(process.err(), HasSubstr("stopping after this row"));
  const std::string out = process.out(), csv = read_file(folder / "rows.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), std::count(out.begin(), out.end(), '\n')) << "a head and rows";
}

// Whatever ends the process, the rows before are there.
TEST(BenchFilesTest, EachRowIsWrittenAsItComes) {
  const TempFolder folder;
  write_file(folder / "rows.csv", "of before\n");
  cli::BenchFiles files("", folder / "rows.csv", folder / "charts", {});
  EXPECT_EQ(read_file(folder / "rows.csv"), "of before\n") << "nothing is lost before there is a row";
  BenchmarkRow row;
  row.suite = "suite";
  row.value = 1.0;
  for (int n = 1; n <= 3; ++n) {
    row.n = n;
    files.add(row);
    const std::string csv = read_file(folder / "rows.csv");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + n);
    const std::string chart = read_file(folder / "charts" / "suite_fwd_speed.svg");
    EXPECT_THAT(chart, HasSubstr("<circle"));
  }
}

}  // namespace
}  // namespace heddle
