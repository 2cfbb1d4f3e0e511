// What guards a run: steps that may be left out, and a limit of its time.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/own_mixer.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"
#include "trainers/trainer.h"

namespace heddle::guards_test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Gives NaN in training when the first number that it reads says so: for one batch in `period`, whichever they are.
struct Explosive : testing::DenseMixer {
  Explosive(const Linear::Options& options, const ModuleBuilder& builder, int64_t dim, int64_t of)
      : DenseMixer(options, builder, dim), period(of) {}
  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const override {
    const Variable y = DenseMixer::forward(tape, x, state, segments);
    if (tape.mode() != Tape::Mode::record) return y;
    double sum = 0.0;
    for (const double value : read_values(tape.context(), x.value)) sum += value;
    if (!std::isfinite(sum)) return y;
    const auto digits = static_cast<int64_t>(std::abs(sum) * 1e4);
    if (digits % period == 0) poison(tape.context(), y.value);
    return y;
  }
  int64_t period;
};
struct ExplosiveOptions : testing::DenseOptions {
  void describe(ConfigFields& fields, const ModelSize& model) override {
    DenseOptions::describe(fields, model);
    fields.field("period", period, Range::positive());
  }
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override {
    return std::make_unique<Explosive>(linear, builder, place.dim, period);
  }
  int64_t period = 1;
};

class GuardsTest : public ::testing::Test {
 protected:
  GuardsTest() : log_(std::fopen((folder_ / "log").c_str(), "w")) {
    registry_.add_mixer("explosive", [] { return std::make_unique<ExplosiveOptions>(); });
  }
  ~GuardsTest() override { std::fclose(log_); }

  TrainConfig config(const std::vector<std::string>& overrides) const {
    return read_train_config(parse_config(testing::tiny_config(), "tiny.yaml", overrides), registry_);
  }
  // Stops after `steps` steps of this call; 0: does not.
  TrainResult run(const std::string& name, const TrainConfig& config, int64_t steps = 0) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / name;
    options.log = log_;
    options.stop_requested = [taken = int64_t{0}, steps]() mutable { return steps > 0 && taken++ == steps; };
    return train(context, config, options, registry_);
  }
  std::string file(const std::string& path) const { return read_file(folder_ / path); }
  std::string log() {
    std::fflush(log_);
    return file("log");
  }

  testing::TempFolder folder_;
  Registry registry_ = built_in_registry();
  std::FILE* log_;
};

TEST_F(GuardsTest, ARunWithStepsLeftOutGoesOnBitForBit) {
  const TrainConfig some = config({"model.mixer={type: explosive, period: 7}", "trainer.skip_nonfinite=5"});
  EXPECT_TRUE(run("whole", some).finished);
  const SkippedSteps skipped = open_checkpoint(folder_ / "whole/checkpoints/step_40").state.skipped;
  ASSERT_GE(skipped.total, 3);
  ASSERT_LE(skipped.total, 30);
  EXPECT_THAT(log(),
              HasSubstr(": blocks.0.mixer made the first non-finite number (forward, nan) from finite inputs; the "
                        "step is left out, 1 of at most 5 in a row (trainer.skip_nonfinite)"));
  EXPECT_THAT(log(), HasSubstr(fmt::format("{} of 40 steps were left out", skipped.total)));
  const std::string metrics = file("whole/metrics.csv");
  EXPECT_THAT(metrics, ::testing::EndsWith(fmt::format(",{}\n", skipped.total)));
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 41);

  for (int stops = 0; !run("parts", some, 3).finished; ++stops) ASSERT_LT(stops, 20);
  for (const char* name : {"metrics.csv", "checkpoints/step_40/model.safetensors",
                           "checkpoints/step_40/optimizer.safetensors", "checkpoints/step_40/state.json"}) {
    EXPECT_EQ(file(std::string("whole/") + name), file(std::string("parts/") + name)) << name;
  }
}

// The count in a row is kept in checkpoints, too: a run that stops often gives up where the other one does.
TEST_F(GuardsTest, TooManyInARowEndTheRunWithoutADamagedCheckpoint) {
  const TrainConfig all = config({"model.mixer={type: explosive}", "trainer.skip_nonfinite=3"});
  for (const std::string name : {"whole", "parts"}) {
    std::string said;
    for (int start = 0; said.empty() && start < 10; ++start) {
      try {
        run(name, all, name == "whole" ? 0 : 1);
      } catch (const NonFinite& error) {
        said = error.what();
      }
    }
    EXPECT_THAT(said, HasSubstr("loss is nan at step 4: blocks.0.mixer made the first non-finite number (forward, nan) "
                                "from finite inputs; the step was not taken, nor were the 3 before it"));
    EXPECT_THAT(said, HasSubstr("A lower optimizer.lr"));
    EXPECT_THAT(file(name + "/metrics.csv"), ::testing::EndsWith("\n3,192,nan,nan,0.0018,,,3\n"));
  }
  EXPECT_TRUE(list_checkpoints(folder_ / "whole/checkpoints").empty());
  for (const CheckpointFolder& checkpoint : list_checkpoints(folder_ / "parts/checkpoints")) {
    EXPECT_LE(checkpoint.step, 3);
    EXPECT_NO_THROW(open_checkpoint(checkpoint.path));
  }
  Context context(Device{}, {.threads = 1});
  TrainStep start(context, all);
  SafetensorsReader reader(folder_ / "parts/checkpoints/step_3/model.safetensors");
  for (const Parameter& parameter : start.model().parameters().all()) {
    EXPECT_EQ(read_values(context, reader.read(context, reader.at(parameter.name))),
              read_values(context, parameter.master));
  }
}

TEST_F(GuardsTest, TheTimeLimitEndsEachStartWithACheckpoint) {
  const std::vector<std::string> settings = {"trainer.steps=6", "trainer.eval_every=3", "trainer.checkpoint_every=4"};
  std::vector<std::string> limited = settings;
  limited.push_back("trainer.hours=1.0e-13");  // over before the first step
  run("whole", config(settings));
  // Each start takes one step; the last one ends the run.
  for (int64_t step = 1; step <= 6; ++step) {
    const TrainResult result = run("limited", config(limited));
    EXPECT_EQ(result.step, step);
    EXPECT_EQ(result.finished, step == 6);
    EXPECT_EQ(result.out_of_time, step < 6);
    EXPECT_EQ(list_checkpoints(folder_ / "limited/checkpoints").back().step, step);
  }
  EXPECT_THAT(log(), HasSubstr("the time is over (trainer.hours 1e-13)"));
  EXPECT_THAT(log(), HasSubstr("stopped after step 3 of 6; to go on from "));
  for (const char* name : {"metrics.csv", "checkpoints/step_6/model.safetensors"}) {
    EXPECT_EQ(file(std::string("whole/") + name), file(std::string("limited/") + name)) << name;
  }
}

TEST_F(GuardsTest, TheTimeLimitIsOneOfHours) {
  const TrainResult result = run("run", config({"trainer.steps=300", "trainer.hours=0.01"}));  // 36 s
  EXPECT_TRUE(result.finished);
}

// Another limit, or none, is no other config; time that is left is no limit.
TEST_F(GuardsTest, AnotherTimeLimitGoesOnWithTheRun) {
  EXPECT_TRUE(run("run", config({"trainer.steps=5", "trainer.hours=1.0e-9"})).out_of_time);
  const TrainResult result = run("run", config({"trainer.steps=5", "trainer.hours=100"}), 2);
  EXPECT_FALSE(result.out_of_time);
  EXPECT_EQ(result.step, 3);
  EXPECT_TRUE(run("run", config({"trainer.steps=5"})).finished);
  EXPECT_THROW(run("run", config({"trainer.steps=7"})), UsageError);
}

}  // namespace
}  // namespace heddle::guards_test
