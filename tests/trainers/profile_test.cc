// The profile of training steps: what is recorded, and what is made of it.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/dry_run.h"
#include "trainers/profile/run_profile.h"
#include "trainers/trainer.h"

namespace heddle::profile_test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

ProfiledKernel kernel(const std::string& phase, const std::string& layer, const std::string& name, double begin,
                      double end, const KernelWork& work = {}) {
  return {.phase = phase, .layer = layer, .name = name, .work = work, .begin = begin, .end = end};
}

Profile example() {
  const KernelWork product{.sizes = {2, 3, 4}, .operations = 1.5e9};
  Profile profile;
  for (int64_t step : {7, 8}) {
    profile.steps.push_back({.step = step,
                             .milliseconds = 10.0,
                             .kernels = {kernel("forward", "blocks.0.mixer", "gemm", 0.0, 1.0, product),
                                         kernel("forward", "blocks.11.mixer", "gemm", 1.0, 3.0, product),
                                         kernel("backward", "blocks.0.mixer", "norm_backward", 3.5, 4.0),
                                         kernel("optimizer", "", "adamw", 4.0, 8.0)}});
  }
  return profile;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

TEST(ProfileTablesTest, TimesAreMeansOfTheStepsAndAddUp) {
  Profile profile = example();
  profile.plain_milliseconds = 9.5;
  EXPECT_THAT(
      lines_of(profile_tables(profile)),
      ElementsAre(
          "profile of steps 7 to 8 on cpu: 10.00 ms a step, 7.50 ms (75.0 %) in 4 kernels; a step before it took 9.50 "
          "ms",
          "", "by layer                                               forward  backward optimizer        ms      %",
          "  (optimizer)                                                                4.000     4.000   40.0",
          "  blocks.*.mixer                                         3.000     0.500               3.500   35.0", "",
          "by kernel                                                   ms      %   calls    us each    TFLOP/s",
          "  adamw                                                  4.000   40.0       1     4000.0",
          "  gemm                                                   3.000   30.0       2     1500.0        1.00",
          "  norm_backward                                          0.500    5.0       1      500.0",
          "  (between kernels: copies, allocations, waiting)        2.500   25.0", "",
          "by layer and kernel                                         ms      %   calls    us each    TFLOP/s",
          "  optimizer  (optimizer)            adamw                4.000   40.0       1     4000.0",
          "  forward    blocks.*.mixer         gemm 2x3x4           3.000   30.0       2     1500.0        1.00",
          "  backward   blocks.*.mixer         norm_backward        0.500    5.0       1      500.0"));
  profile.steps.pop_back();
  profile.in_graph = true;
  EXPECT_THAT(profile_tables(profile), AllOf(StartsWith("profile of step 7 on cpu: 10.00 ms a step"),
                                             HasSubstr("; replays of a graph with marks around each kernel")));
}

TEST(ProfileTablesTest, OfManyRowsTheLongestAreShown) {
  Profile profile = example();
  profile.steps.resize(1);
  for (int i = 0; i < 40; ++i) {
    profile.steps[0].kernels.push_back(kernel("forward", "head", fmt::format("k{}", i), 0.0, 0.001 * i));
  }
  const std::string text = profile_tables(profile);
  EXPECT_THAT(text, HasSubstr("the longest 24 of 43"));
  const std::string rows = text.substr(text.find("the longest"));
  EXPECT_THAT(rows, AllOf(HasSubstr(" k39 "), Not(HasSubstr(" k1 "))));
}

// The trace of two steps: slices are closed in the order in which they were opened, and the second step comes after the
// first one.
TEST(ProfileTraceTest, HasPhasesLayersKernelsAndBytes) {
  Profile profile = example();
  profile.steps[1].kernels[0].allocated[0] = 512;
  const nlohmann::json trace = nlohmann::json::parse(profile_trace(profile));
  std::map<int, std::vector<std::string>> open;
  std::map<std::string, double> begins;  // of phases and kernels, the last time
  std::set<std::string> paths;
  std::set<double> durations;  // of adamw
  nlohmann::json bytes;
  for (const nlohmann::json& event : trace["traceEvents"]) {
    const std::string kind = event["ph"];
    if (kind == "B") {
      open[event["tid"]].push_back(event["name"]);
      begins[event["name"]] = event["ts"];
      if (event["tid"] == 2) paths.insert(fmt::format("{}", fmt::join(open[2], ".")));
    } else if (kind == "E") {
      open[event["tid"]].pop_back();
    } else if (kind == "X") {
      EXPECT_EQ(event["tid"], 3);
      begins[event["name"]] = event["ts"];
      if (event["name"] == "adamw") durations.insert(event["dur"].get<double>());
    } else if (kind == "C" && event["ts"] == 10000.0) {
      bytes = event["args"]["parameter"];
    }
  }
  EXPECT_TRUE(open[1].empty() && open[2].empty());
  EXPECT_THAT(paths, ElementsAre("blocks", "blocks.0", "blocks.0.mixer", "blocks.11", "blocks.11.mixer"));
  EXPECT_EQ(begins["backward"], 13500.0);
  EXPECT_EQ(begins["gemm 2x3x4"], 11000.0);
  EXPECT_EQ(bytes, 512);
  EXPECT_THAT(durations, ElementsAre(4000.0));
}

class ProfileTest : public ::testing::Test {
 protected:
  // Trains and returns what the loggers heard of profiles.
  std::vector<ProfileEvent> run(const std::string& name, const TrainConfig& config,
                                const std::string& resume = "auto") {
    struct Listener : Logger {
      void profile(const ProfileEvent& event) override { events.push_back(event); }
      void note(const std::string& line) override { notes.push_back(line); }
      std::vector<ProfileEvent> events;
      std::vector<std::string> notes;
    } listener;
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / name;
    options.resume = resume;
    options.log = nullptr;
    options.loggers = {&listener};
    train(context, config, options);
    notes_ = listener.notes;
    return listener.events;
  }
  std::string file(const std::string& path) const { return read_file(folder_ / path); }

  testing::TempFolder folder_;
  std::vector<std::string> notes_;
};

// Every kernel of a step is there once, in its layer and phase, and what is trained stays the same.
TEST_F(ProfileTest, OfARun) {
  const std::string trace = (folder_ / "trace.json").string();
  const std::vector<std::string> plain = {"trainer.steps=10"};
  const std::vector<std::string> profiled = {"trainer.steps=10", "trainer.accumulate=1",
                                             "trainer.profile={steps: [4, 6], trace: '" + trace + "'}"};
  EXPECT_TRUE(run("plain", testing::tiny_train_config(plain)).empty());
  const std::vector<ProfileEvent> events = run("run", testing::tiny_train_config(profiled));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].step, 6);
  EXPECT_EQ(events[0].trace, trace);
  const std::string& text = events[0].tables;
  EXPECT_THAT(text, AllOf(StartsWith("profile of steps 4 to 6 on cpu: "), HasSubstr("; a step before it took ")));
  // Two blocks: qkv, gate down and up, and out; 4 x 16 tokens of 16 features.
  EXPECT_THAT(text, ::testing::ContainsRegex("forward    blocks\\.\\*\\.mixer         gemm 64x48x16 .* 2  "));
  EXPECT_THAT(text, ::testing::ContainsRegex("  update_parameters .* 1  "));
  EXPECT_THAT(text, HasSubstr("  (between kernels: "));
  int forward = 0, optimizer = 0;
  const nlohmann::json events_of_trace = nlohmann::json::parse(read_file(trace))["traceEvents"];
  for (const nlohmann::json& event : events_of_trace) {
    forward += event["ph"] == "X" && event["name"] == "linear_attention_forward" ? 1 : 0;
    optimizer += event["ph"] == "B" && event["name"] == "optimizer" ? 1 : 0;
  }
  EXPECT_EQ(forward, 2 * 3);
  EXPECT_EQ(optimizer, 3);
  EXPECT_EQ(file("run/metrics.csv"), file("plain/metrics.csv"));
  EXPECT_EQ(file("run/checkpoints/step_10/model.safetensors"), file("plain/checkpoints/step_10/model.safetensors"));
}

// What is written about a run is no part of what is trained: it may be switched on when a run continues.
TEST_F(ProfileTest, ARunMayContinueWithOneAndWithout) {
  const std::vector<std::string> steps = {"trainer.steps=8", "trainer.checkpoint_every=4", "trainer.eval_every=4"};
  run("run", testing::tiny_train_config(steps));
  std::filesystem::remove_all(folder_ / "run/checkpoints/step_8");
  std::vector<std::string> more = steps;
  more.insert(more.end(), {"trainer.profile={steps: [5, 5]}", "logging={jsonl: true}"});
  EXPECT_EQ(run("run", testing::tiny_train_config(more)).size(), 1u);
  std::filesystem::remove_all(folder_ / "run/checkpoints/step_8");
  more[3] = "trainer.profile={steps: [3, 4]}";
  EXPECT_TRUE(run("run", testing::tiny_train_config(more)).empty());
  EXPECT_THAT(notes_, ElementsAre("trainer.profile: nothing is measured, since step 4 was taken before this start"));
}

// A disk that is full ends no training.
TEST_F(ProfileTest, ATraceThatCannotBeWrittenIsSaid) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  const auto events =
      run("run", testing::tiny_train_config({"trainer.steps=5", "trainer.profile={steps: [2, 2], trace: /dev/full}"}));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_THAT(events[0].tables, HasSubstr("there is no trace: cannot write /dev/full"));
  EXPECT_TRUE(events[0].trace.empty());
  EXPECT_TRUE(std::filesystem::exists(folder_ / "run/checkpoints/step_5"));
}

TEST_F(ProfileTest, AFileThatCannotBeMadeIsKnownBeforeTheFirstStep) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.profile={steps: [4, 6], trace: '" + (folder_ / "no/t.json").string() + "'}"});
  const std::string said = "trainer.profile.trace: cannot create " + (folder_ / "no").string();
  const auto refusal = [](const auto& starts) -> std::string {
    try {
      starts();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refusal([&] { run("run", config); }), HasSubstr(said));
  EXPECT_THAT(refusal([&] { dry_run(config, {.folder = folder_ / "run"}); }), HasSubstr(said));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run/config.yaml"));
  EXPECT_THAT(refusal([] { testing::tiny_train_config({"trainer.profile={steps: [4, 6], trace: ''}"}); }),
              HasSubstr("trainer.profile.trace: found an empty path"));
  const std::string there = (folder_ / "there.json").string();
  write_file(there, "something");
  check_trace(testing::tiny_train_config({"trainer.profile={steps: [4, 6], trace: '" + there + "'}"}));
  EXPECT_EQ(read_file(there), "something") << "it is replaced when there is something to write";
}

}  // namespace
}  // namespace heddle::profile_test
