// `heddle train` and signals: nothing is lost, whenever they come.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/tensor/random.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using std::chrono::duration;
using std::chrono::steady_clock;
using ::testing::HasSubstr;
using testing::Process;

class SignalsTest : public ::testing::Test {
 protected:
  SignalsTest() {
    std::ofstream(config_) << testing::tiny_config();
    ::setenv("OMP_WAIT_POLICY", "passive", 1);  // the tests beside this one need the cores, too
  }

  // Two threads, and products that are large enough for the library that computes them where it is installed.
  std::vector<std::string> train(const std::string& out, const std::vector<std::string>& settings) const {
    std::vector<std::string> arguments = {"train", config_.string(), "--out", (folder_ / out).string(), "--device",
                                          "cpu",   "--threads",      "2"};
    for (const std::string& setting : settings) arguments.insert(arguments.end(), {"--set", setting});
    return arguments;
  }
  static std::vector<std::string> larger(const std::vector<std::string>& more) {
    std::vector<std::string> settings = {"model.dim=64",         "model.channel.hidden=96",
                                         "trainer.batch_size=8", "trainer.eval_batches=1",
                                         "trainer.steps=60",     "trainer.checkpoint_every=0"};
    settings.insert(settings.end(), more.begin(), more.end());
    return settings;
  }
  std::string file(const std::string& path) const { return read_file(folder_ / path); }
  std::vector<CheckpointFolder> checkpoints(const std::string& run) const {
    return list_checkpoints(folder_ / run / "checkpoints");
  }
  void expect_equal_runs(const std::string& one, const std::string& other, int64_t step) const {
    EXPECT_EQ(file(one + "/metrics.csv"), file(other + "/metrics.csv"));
    const std::string checkpoint = fmt::format("/checkpoints/step_{}/", step);
    for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
      EXPECT_EQ(file(one + checkpoint + name), file(other + checkpoint + name)) << name;
    }
  }

  testing::TempFolder folder_;
  fs::path config_ = folder_ / "tiny.yaml";
};

// tests/interrupt.sh runs it with HEDDLE_INTERRUPTS=500. A signal that comes before the program has begun ends it like
// any other program; all others leave a whole checkpoint.
TEST_F(SignalsTest, InterruptedAtRandomMoments) {
  const char* wanted = std::getenv("HEDDLE_INTERRUPTS");
  const int interrupts = wanted != nullptr ? std::atoi(wanted) : 20;
  const auto start = steady_clock::now();
  ASSERT_EQ(testing::run_heddle(train("whole", larger({}))).code, 0);
  const double seconds = duration<double>(steady_clock::now() - start).count();

  Random random(11, RandomStream::test);
  constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
  int interrupted = 0, too_early = 0;
  for (int run = 0; interrupted < interrupts; ++run) {
    const std::string name = fmt::format("run_{}", run);
    for (bool finished = false; !finished;) {
      Process process(train(name, larger({})));
      std::this_thread::sleep_for(duration<double>(0.7 * seconds * random.next_uniform()));
      const int signal = kSignals[random.next_below(3)];
      process.send(signal);
      const int code = process.wait();
      if (code == -signal) {
        EXPECT_EQ(process.err(), "");
        ASSERT_LT(++too_early, 10 * interrupts + 100);
        continue;
      }
      ASSERT_TRUE(code == 130 || code == 0) << code << ": " << process.err();
      ASSERT_FALSE(checkpoints(name).empty()) << process.err();
      ASSERT_NO_THROW(open_checkpoint(checkpoints(name).back().path));
      finished = code == 0;
      interrupted += code == 130 ? 1 : 0;
    }
    expect_equal_runs("whole", name, 60);
    fs::remove_all(folder_ / name);
  }
  if (wanted != nullptr) fmt::print("{} interrupted, {} before they had begun\n", interrupted, too_early);
}

TEST_F(SignalsTest, AskedForACheckpointItGoesOn) {
  Process process(train("run", {"trainer.steps=1000000", "trainer.eval_every=0", "trainer.checkpoint_every=0"}));
  ASSERT_TRUE(process.wait_for("step 1/1000000")) << process.err();
  process.send(SIGUSR1);
  while (process.running() && checkpoints("run").empty()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  ASSERT_EQ(checkpoints("run").size(), 1u) << process.err();
  EXPECT_NO_THROW(open_checkpoint(checkpoints("run").back().path));
  const int64_t asked_for = checkpoints("run").back().step;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130) << "it has not gone on";
  EXPECT_GT(checkpoints("run").back().step, asked_for);
}

TEST_F(SignalsTest, AlarmsFromOutsideChangeNothing) {
  ASSERT_EQ(testing::run_heddle(train("whole", larger({}))).code, 0);
  Process process(train("alarmed", larger({})));
  ASSERT_TRUE(process.wait_for("parameters")) << process.err();
  while (process.running()) {
    process.send(SIGALRM);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_EQ(process.wait(), 0) << process.err();
  expect_equal_runs("whole", "alarmed", 60);
}

// As UCX does, which MPI brings along: a library whose constructor installs a handler is preloaded.
TEST_F(SignalsTest, HandlersThatLibrariesInstallAreTakenAway) {
#if defined(HEDDLE_SANITIZED)
  GTEST_SKIP() << "the library of a sanitizer is to be the first";
#endif
  for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
    for (const bool ignored : {false, true}) {
      const std::string name = fmt::format("run_{}_{}", signal, ignored);
      const auto before = std::signal(signal, ignored ? SIG_IGN : SIG_DFL);
      ::setenv("LD_PRELOAD", HEDDLE_LIBRARY_WITH_HANDLERS, 1);
      const std::string steps = ignored ? "200" : "1000000";
      Process process(train(name, {"trainer.steps=" + steps, "trainer.eval_every=0"}));
      ::unsetenv("LD_PRELOAD");
      std::signal(signal, before);
      ASSERT_TRUE(process.wait_for("step 1/" + steps)) << process.err();
      process.send(signal);
      EXPECT_EQ(process.wait(), ignored ? 0 : 130) << signal << ": " << process.err();
      EXPECT_FALSE(checkpoints(name).empty());
    }
  }
}

// As nohup does for SIGHUP, and a shell for the SIGINT of a job in the background.
TEST_F(SignalsTest, WhatTheCallerIgnoresStaysIgnored) {
  for (const int signal : {SIGHUP, SIGINT}) {
    const std::string name = fmt::format("run_{}", signal);
    const auto before = std::signal(signal, SIG_IGN);
    Process process(train(name, {"trainer.steps=200", "trainer.eval_every=0"}));
    std::signal(signal, before);
    ASSERT_TRUE(process.wait_for("step 1/200")) << process.err();
    process.send(signal);
    EXPECT_EQ(process.wait(), 0) << process.err();
    EXPECT_THAT(process.err(), ::testing::Not(HasSubstr("stopping")));
  }
}

TEST_F(SignalsTest, TheSecondSignalEndsAtOnce) {
  // Both are there when it goes on. It may have ended by itself when it is told of the second, but not every time.
  std::vector<int> codes;
  for (int trial = 0; trial < 10 && (codes.empty() || codes.back() >= 0); ++trial) {
    Process process(train("run" + std::to_string(trial), {"trainer.steps=1000000"}));
    ASSERT_TRUE(process.wait_for("parameters")) << process.err();
    process.send(SIGSTOP);
    process.send(SIGTERM);
    process.send(SIGINT);
    process.send(SIGCONT);
    codes.push_back(process.wait());
  }
  EXPECT_THAT(codes.back(), ::testing::AnyOf(-SIGTERM, -SIGINT)) << ::testing::PrintToString(codes);
}

TEST_F(SignalsTest, TheTextAtTheEndIsCutShort) {
  std::ofstream(folder_ / "text") << std::string(4000, 'x');
  Process process(
      train("run", {"data={type: text, path: \"" + (folder_ / "text").string() + "\"}", "model.vocab_size=256",
                    "trainer.steps=5", "trainer.sample={prompt: x, tokens: 1000000000}"}));
  ASSERT_TRUE(process.wait_for("run folder  ")) << process.err();
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_THAT(process.out(), ::testing::StartsWith("x"));
  ASSERT_EQ(checkpoints("run").back().step, 5);
}

}  // namespace
}  // namespace heddle
