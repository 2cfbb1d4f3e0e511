// heddle compare: what it prints and writes, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::Process;
using testing::run_heddle;
using ::testing::SizeIs;
using ::testing::StartsWith;
using testing::TempFolder;

class CompareCommand : public ::testing::Test {
 protected:
  CompareCommand() {
    std::ofstream(first_) << testing::tiny_config();
    std::ofstream(second_) << "base: first.yaml\nmodel: {mixer: {type: softmax_attention, heads: 2}}\n";
  }

  // Both models, small.
  std::vector<std::string> arguments(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"compare",        first_, second_,     "--device", "cpu",       "--threads", "1",
                                    "--recall-steps", "2",    "--lengths", "16",       "--context", "4,8"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string refusal(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"compare", first_, second_, "--device", "cpu"};
    all.insert(all.end(), more.begin(), more.end());
    const Finished finished = run_heddle(all);
    EXPECT_EQ(finished.code, 2) << finished.out;
    EXPECT_THAT(finished.out, IsEmpty());
    return finished.err;
  }
  std::string path(const char* name) const { return (folder_ / name).string(); }

  TempFolder folder_;
  const std::string first_ = path("first.yaml"), second_ = path("second.yaml");
};

TEST_F(CompareCommand, PrintsAndWritesAllOfIt) {
  const Finished finished =
      run_heddle(arguments({"--steps", "4", "--seeds", "2", "--json", path("c.json"), "--plot", path("c.svg")}));
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, AllOf(StartsWith("| model "), HasSubstr("| first "), HasSubstr("| second ")));
  EXPECT_THAT(finished.err, AllOf(HasSubstr("first: generation after 4 tokens\n"),
                                  HasSubstr("second: training with seed 8\n"), HasSubstr("step 4/4 ")));
  const nlohmann::json json = nlohmann::json::parse(read_file(path("c.json")));
  ASSERT_THAT(json["models"], SizeIs(2));
  EXPECT_THAT(json["models"][1]["validation_loss"], SizeIs(2));
  EXPECT_THAT(read_file(path("c.svg")), StartsWith("<svg "));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs")) << "nothing is kept of the trainings";
}

TEST_F(CompareCommand, NamesOfAnyBytesAreWritten) {
  const std::string config = path("caf\xe9.yaml");
  std::filesystem::copy_file(first_, config);
  const Finished finished =
      run_heddle({"compare", config, second_, "--device", "cpu", "--threads", "1", "--steps", "2", "--recall-steps",
                  "0", "--lengths", "16", "--context", "4", "--json", path("c.json"), "--plot", path("c.svg")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(nlohmann::json::parse(read_file(path("c.json")))["models"][0]["name"], "caf\xef\xbf\xbd");
  EXPECT_THAT(read_file(path("c.svg")), HasSubstr(">caf\xef\xbf\xbd: "));
}

// All trainings would write one trace.
TEST_F(CompareCommand, ProfilesNoTraining) {
  const Finished finished = run_heddle(
      arguments({"--steps", "4", "--set", "trainer.profile={steps: [3, 4], trace: '" + path("trace.json") + "'}"}));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_FALSE(std::filesystem::exists(path("trace.json")));
}

// The models before it are shown and kept.
TEST_F(CompareCommand, AModelThatFailsTakesNoOtherWithIt) {
  std::ofstream(second_) << "base: first.yaml\noptimizer: {lr: 1.0e+30}\n";
  const Finished finished = run_heddle(arguments({"--steps", "4", "--json", "/dev/stdout"}));
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.err, AllOf(HasSubstr("error: second: "), HasSubstr("| model "), HasSubstr("| first "),
                                  Not(HasSubstr("| second "))));
  EXPECT_THAT(finished.out, AllOf(StartsWith("{"), HasSubstr("\"models\""), Not(HasSubstr("| model "))));
}

TEST_F(CompareCommand, AnInterruptIsCode130) {
  Process process(arguments({"--steps", "100000000"}));
  ASSERT_TRUE(process.wait_for("first: training with seed 7"));
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_THAT(process.err(), HasSubstr("stopping"));
  EXPECT_THAT(process.out(), IsEmpty());
}

// What cannot be held is found before anything is measured. The attention of `second` keeps all tokens.
TEST_F(CompareCommand, RefusesWhatTakesMoreMemoryThanThereIs) {
  const std::vector<std::string> wide = {"--set", "model.dim=4096"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), wide.begin(), wide.end());
    return refusal(more);
  };
  EXPECT_THAT(with({"--context", "2147483647", "--lengths", "16"}),
              AllOf(HasSubstr("--context: the state of second after 2147483647 tokens takes more memory than cpu has"),
                    Not(HasSubstr("generation"))));
  EXPECT_THAT(with({"--lengths", "2147483647", "--context", "4"}),
              AllOf(HasSubstr("--lengths: a training step of first at length 2147483647 takes more memory than cpu"),
                    Not(HasSubstr("generation"))));
}

TEST_F(CompareCommand, AFolderForTrainingsIsLookedForFirst) {
  std::string command = "TMPDIR='" + path("none") + "' '" HEDDLE_PROGRAM "'";
  for (const std::string& argument : arguments({"--steps", "4"})) command += " '" + argument + "'";
  const int status = std::system((command + " 2> '" + path("err") + "'").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(read_file(path("err")), AllOf(HasSubstr("which TMPDIR names"), Not(HasSubstr("generation"))));
}

TEST_F(CompareCommand, RefusesWhatIsWrong) {
  EXPECT_THAT(refusal({"--steps", "0"}), HasSubstr("--steps: found '0', expected an integer >= 1"));
  EXPECT_THAT(refusal({"--seeds", "0"}), HasSubstr("--seeds: found '0', expected an integer >= 1"));
  EXPECT_THAT(refusal({"--recall-steps", "-1"}), HasSubstr("--recall-steps: found '-1', expected an integer >= 0"));
  EXPECT_THAT(refusal({"--lengths", "16,x"}), HasSubstr("--lengths: found 'x'"));
  EXPECT_THAT(refusal({"--context", "0"}), HasSubstr("--context: found '0', expected an integer in [1, 2147483647]"));
  EXPECT_THAT(refusal({"--context", "99999999999"}), HasSubstr("expected an integer in [1, 2147483647]"));
  EXPECT_THAT(refusal({"--set", "model.dims=4"}), HasSubstr("did you mean"));
  EXPECT_THAT(refusal({"--json", path("none/file")}), HasSubstr("--json: "));
  EXPECT_THAT(refusal({"--plot", folder_.path().string()}), HasSubstr("is a folder"));
  EXPECT_THAT(refusal({path("none.yaml")}), HasSubstr("none.yaml"));
  EXPECT_THAT(refusal({first_}), HasSubstr("is given twice"));
  std::filesystem::create_hard_link(first_, path("hard.yaml"));
  EXPECT_THAT(refusal({path("hard.yaml")}), HasSubstr("hard.yaml is given twice"));
  EXPECT_THAT(refusal({"--set", "data={type: text, path: none.txt}", "--set", "model.vocab_size=256"}),
              AllOf(HasSubstr("data.path: "), HasSubstr("none.txt"), Not(HasSubstr("generation"))));
  const std::string other = path("other.yaml");
  std::ofstream(other) << "base: first.yaml\ndata: {length: 5}\n";
  EXPECT_THAT(refusal({other}), AllOf(StartsWith("error: " + other + ":2:"), HasSubstr("data.length: found 5")));
  const Finished nothing = run_heddle({"compare"});
  EXPECT_EQ(nothing.code, 2);
}

}  // namespace
}  // namespace heddle
