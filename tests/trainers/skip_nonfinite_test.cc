// Steps whose numbers are not finite: they change no bit, are left out as often as the config allows, and say which
// part of the model made the first such number.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/layers/on_devices.h"
#include "tests/trainers/test_config.h"
#include "trainers/non_finite.h"
#include "trainers/train_step.h"

namespace heddle::skip_nonfinite_test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Values = std::vector<double>;

// Of the scale 3e38 the gradient overflows in float32, and the loss does not.
constexpr LossScale kOverflowing{.value = 3e38};

class SkipNonfinite : public test::OnDevices {
 protected:
  // The weights, what layers read of them, their average, and what the optimizer keeps.
  std::vector<Values> numbers(TrainStep& train_step) {
    const ParameterSet& parameters = train_step.model().parameters();
    std::vector<Values> all = {read_values(context(), parameters.master()), read_values(context(), parameters.value())};
    for (const NamedTensor& moment : train_step.optimizer().state()) {
      all.push_back(read_values(context(), moment.tensor));
    }
    if (train_step.average() != nullptr) all.push_back(read_values(context(), train_step.average()->flat()));
    return all;
  }
  // Takes step number `step` on the batches of step number `of`.
  static StepResult take(TrainStep& train_step, const TrainConfig& config, int64_t step, int64_t of) {
    const auto data = make_dataset(dataset_options(config));
    return train_step.step(testing::batches_of_step(*data, config, of), step, 1e-3);
  }
  static std::string refusal(TrainStep& train_step, const TrainConfig& config, int64_t step) {
    try {
      take(train_step, config, step, step);
    } catch (const NonFinite& error) {
      return error.what();
    }
    return "taken";
  }
  // Writes the number into what layers read of a parameter, and returns what was there.
  double exchange(Parameter& parameter, double number) {
    Values values = read_values(context(), parameter.value);
    const double before = std::exchange(values.back(), number);
    write_values(context(), parameter.value, values);
    return before;
  }
};

// A gradient in the third step and a loss in the sixth, on a GPU by a graph that is replayed. In between and afterwards
// the run is the one that never saw these batches.
TEST_P(SkipNonfinite, AStepThatIsLeftOutChangesNoBit) {
  for (const auto& [type, graph] : std::vector<std::pair<std::string, std::string>>{
           {"adamw", "auto"}, {"adamw", "off"}, {"lion", "auto"}, {"sgd", "auto"}, {"muon", "auto"}}) {
    SCOPED_TRACE(type);
    const TrainConfig config =
        testing::tiny_train_config({"trainer.dtype=bfloat16", "trainer.accumulate=2", "trainer.skip_nonfinite=1",
                                    "trainer.ema=0.9", "trainer.cuda_graph=" + graph, "optimizer.type=" + type});
    TrainStep disturbed(context(), config), undisturbed(context(), config);
    Parameter& parameter = disturbed.model().parameters().all()[2];
    int64_t taken = 0;
    for (int64_t step = 1; step <= 8; ++step) {
      const std::vector<Values> before = numbers(disturbed);
      double good = 0.0;
      if (step == 3) disturbed.set_loss_scale(kOverflowing);
      if (step == 6) good = exchange(parameter, std::numeric_limits<double>::quiet_NaN());
      const StepResult result = take(disturbed, config, step, step);
      disturbed.set_loss_scale({});
      if (step == 6) exchange(parameter, good);
      EXPECT_EQ(result.left_out, step == 3 || step == 6) << step;
      EXPECT_EQ(std::isfinite(result.loss), step != 6) << step;
      EXPECT_EQ(result.reason.empty(), !result.left_out) << result.reason;
      if (result.left_out) {
        EXPECT_EQ(numbers(disturbed), before) << step;
      } else {
        EXPECT_EQ(take(undisturbed, config, ++taken, step).loss, result.loss) << step;
        EXPECT_EQ(numbers(disturbed), numbers(undisturbed)) << step;
      }
    }
    EXPECT_EQ(disturbed.skipped(), (SkippedSteps{.total = 2, .in_a_row = 0}));
  }
}

TEST_P(SkipNonfinite, SoManyInARowAndNoMore) {
  const TrainConfig config = testing::tiny_train_config({"trainer.skip_nonfinite=2"});
  TrainStep train_step(context(), config);
  take(train_step, config, 1, 1);
  for (int64_t step = 2; step <= 9; ++step) {
    train_step.set_loss_scale(step % 3 == 1 ? LossScale{} : kOverflowing);
    EXPECT_EQ(take(train_step, config, step, step).left_out, step % 3 != 1) << step;
  }
  EXPECT_EQ(train_step.skipped(), (SkippedSteps{.total = 6, .in_a_row = 2}));
  const std::vector<Values> before = numbers(train_step);
  const std::string said = refusal(train_step, config, 10);
  EXPECT_THAT(said, StartsWith("gradient norm is "));
  EXPECT_THAT(said, HasSubstr("the step was not taken, nor were the 2 before it (trainer.skip_nonfinite)"));
  EXPECT_EQ(numbers(train_step), before);
  EXPECT_EQ(train_step.skipped(), (SkippedSteps{.total = 6, .in_a_row = 2}));
}

TEST_P(SkipNonfinite, WithoutItTheFirstOneIsRefused) {
  const TrainConfig config = testing::tiny_train_config();
  TrainStep train_step(context(), config);
  take(train_step, config, 1, 1);
  const std::vector<Values> before = numbers(train_step);
  train_step.set_loss_scale(kOverflowing);
  const std::string said = refusal(train_step, config, 2);
  EXPECT_THAT(said, ::testing::EndsWith("; the step was not taken"));
  EXPECT_THAT(said, ::testing::MatchesRegex("gradient norm is (inf|nan) at step 2: .* made the first non-finite number "
                                            ".backward, -?(inf|nan). from finite gradients; .*"));
  EXPECT_EQ(numbers(train_step), before);
}

// Large but finite weights: float16 overflows inside one layer. Where it is recomputed in backward, the part is named.
TEST_P(SkipNonfinite, TheOperatorThatOverflowsIsNamed) {
  for (const auto& [recompute, expected] : std::vector<std::pair<std::string, std::string>>{
           {"none",
            "blocks.1.channel.linear (blocks.1.channel.w12.weight) made the first non-finite number (forward, "},
           {"mixer",
            "blocks.1.channel.linear (blocks.1.channel.w12.weight) made the first non-finite number (forward, "},
           {"block", "blocks.1.channel made the first non-finite number (forward, "}}) {
    const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float16", "model.recompute=" + recompute});
    TrainStep train_step(context(), config);
    for (Parameter& parameter : train_step.model().parameters().all()) {
      if (!parameter.name.starts_with("blocks.1.channel.w")) continue;
      write_values(context(), parameter.value, Values(static_cast<size_t>(numel(parameter.shape)), 6e4));
    }
    const std::string said = refusal(train_step, config, 1);
    EXPECT_THAT(said, StartsWith("loss is nan at step 1: " + expected)) << recompute;
    EXPECT_THAT(said, HasSubstr("from finite inputs; the step was not taken"));
  }
}

// The rows of the head are large and of both signs, so what its logits get is finite and what its input gets is not.
TEST_P(SkipNonfinite, TheGradientThatOverflowsIsNamed) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float16", "trainer.loss_scale=16384"});
  TrainStep train_step(context(), config);
  for (Parameter& parameter : train_step.model().parameters().all()) {
    if (parameter.name != "head.weight") continue;
    Values weight(static_cast<size_t>(numel(parameter.shape)));
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = (i / 16) % 2 == 0 ? 1e3 : -1e3;
    write_values(context(), parameter.value, weight);
  }
  EXPECT_THAT(refusal(train_step, config, 1),
              ::testing::MatchesRegex("gradient norm is (inf|nan) at step 1: head.linear .head.weight. made the first "
                                      "non-finite number .backward, -?inf. from finite gradients; .*"));
}

TEST_P(SkipNonfinite, LargeTensorsAreReadInParts) {
  const Tensor numbers = Tensor::zeros(context(), {1, 3, (int64_t{1} << 21) + 1, 2}, DType::bfloat16);
  EXPECT_FALSE(first_non_finite(context(), numbers).has_value());
  for (const int64_t row : {int64_t{0}, int64_t{3} << 20, numbers.numel() / 2 - 1}) {
    const Tensor one = numbers.reshape({numbers.numel() / 2, 2}).slice(0, row, row + 1);
    write_values(context(), one, {1.0, -std::numeric_limits<double>::infinity()});
    const auto found = first_non_finite(context(), numbers);
    ASSERT_TRUE(found.has_value()) << row;
    EXPECT_EQ(*found, -std::numeric_limits<double>::infinity());
    EXPECT_TRUE(first_non_finite(context(), one.slice(1, 1, 2)).has_value());
    EXPECT_FALSE(first_non_finite(context(), one.slice(1, 0, 1)).has_value());
    write_values(context(), one, {1.0, 1.0});
  }
}

HEDDLE_ON_DEVICES(SkipNonfinite);

}  // namespace
}  // namespace heddle::skip_nonfinite_test
