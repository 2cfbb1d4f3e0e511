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
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using ::testing::StartsWith;

// A model of a line of text, trained for a few steps.
class TrainedTest : public ::testing::Test {
 protected:
  TrainedTest() {
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 60; ++i) text << "the quick brown fox jumps over the lazy dog\n";
    text.close();
    std::ofstream(folder_ / "tiny.yaml") << testing::tiny_config();
    const std::string data = "data={type: text, path: \"" + (folder_ / "text.txt").string() + "\"}";
    training_ = run_heddle({"train", (folder_ / "tiny.yaml").string(), "--out", run_, "--device", "cpu", "--threads",
                            "1", "--set", data, "--set", "model.vocab_size=256", "--set",
                            "trainer.sample={prompt: \"the \", tokens: 12, temperature: 0.5}"});
  }

  testing::TempFolder folder_;
  std::string run_ = (folder_ / "run").string();
  Finished training_;
};

TEST_F(TrainedTest, TrainingReportsAndPrintsTheSample) {
  ASSERT_EQ(training_.code, 0) << training_.err;
  EXPECT_THAT(training_.out, StartsWith("the "));
  EXPECT_THAT(training_.err, HasSubstr("step 40/40  loss "));
  EXPECT_THAT(training_.err, HasSubstr("k tokens/s"));
  EXPECT_THAT(training_.err, HasSubstr("nats/byte"));
}

TEST_F(TrainedTest, EvalGivesTheLossOfTheLastRow) {
  const Finished eval = run_heddle({"eval", run_});
  ASSERT_EQ(eval.code, 0) << eval.err;
  EXPECT_THAT(eval.out, HasSubstr("perplexity"));
  EXPECT_THAT(eval.out, HasSubstr("bits per byte"));
  const std::string metrics = read_file(run_ + "/metrics.csv");
  const std::string last = metrics.substr(metrics.rfind('\n', metrics.size() - 2) + 1);
  const size_t begin = last.rfind(',', last.size() - 3) + 1;
  const double loss = std::stod(last.substr(begin));
  EXPECT_THAT(eval.out, HasSubstr(fmt::format("{:.6f} nats per byte", loss)));
  EXPECT_EQ(run_heddle({"eval", run_ + "/checkpoints/step_40"}).out, eval.out);
  EXPECT_NE(run_heddle({"eval", run_, "--set", "trainer.eval_batches=1"}).out, eval.out);
}

TEST_F(TrainedTest, EvalNamesWhatIsWrong) {
  EXPECT_EQ(run_heddle({"eval", run_, "--set", "trainer.evalbatches=1"}).code, 2);
  const Finished nowhere = run_heddle({"eval", run_ + "/nowhere"});
  EXPECT_EQ(nowhere.code, 1);
  EXPECT_THAT(nowhere.err, HasSubstr("nowhere does not exist"));
  fs::resize_file(run_ + "/checkpoints/step_40/model.safetensors", 99);
  const Finished passed_over = run_heddle({"eval", run_});
  EXPECT_EQ(passed_over.code, 0);
  EXPECT_THAT(passed_over.err, HasSubstr("model.safetensors: 99 bytes, expected"));
  EXPECT_THAT(passed_over.out, HasSubstr("step_30"));
  const Finished damaged = run_heddle({"eval", run_ + "/checkpoints/step_40"});
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.err, StartsWith("error: " + run_ + "/checkpoints/step_40/model.safetensors: 99 bytes, expected"));
}

TEST_F(TrainedTest, GenerateRepeatsItselfBySeed) {
  const auto text = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate", run_, "--prompt", "the ", "--tokens", "40"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished finished = run_heddle(arguments);
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.out, StartsWith("the "));
    return finished.out;
  };
  EXPECT_EQ(text({"--seed", "3"}), text({"--seed", "3"}));
  EXPECT_NE(text({"--seed", "3"}), text({"--seed", "4"}));
  EXPECT_EQ(text({"--temperature", "0"}), text({"--top-k", "1", "--seed", "9"}));
  EXPECT_EQ(text({"--temperature", "0"}), text({"--top-p", "0"}));
  EXPECT_EQ(run_heddle({"generate", run_, "--prompt", ""}).code, 2);
  EXPECT_EQ(run_heddle({"generate", run_, "--top-p", "1.5"}).code, 2);
  EXPECT_EQ(run_heddle({"generate", run_, "--temperature", "-1"}).code, 2);
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

}  // namespace
}  // namespace heddle
