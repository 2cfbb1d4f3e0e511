// What a training step does with the gradients of its batches, on both devices: it clears them, adds them up, takes
// their mean, divides the loss scale out, and makes one step of its optimizer with the rate that it is given.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/layers/on_devices.h"
#include "tests/trainers/reference_optimizer.h"
#include "tests/trainers/test_config.h"
#include "trainers/train_step.h"

namespace heddle::learner_test {
namespace {

using Values = std::vector<double>;

// A tiny model with vectors and angles among its parameters. eps is as large as the gradients, so that their size
// counts in every update and not only their direction.
TrainConfig config_of(const std::vector<std::string>& more,
                      const std::string& optimizer = "{betas: [0.71, 0.937], eps: 0.03, weight_decay: 0.23}") {
  std::vector<std::string> overrides = {"model.norm={type: rms_norm}",
                                        "model.mixer.lrpe={type: lrpe_rotate, learnable: true, per_head: true}",
                                        "optimizer=" + optimizer, "optimizer.clip_norm=0"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return testing::tiny_train_config(overrides);
}

class Learner : public test::OnDevices {
 protected:
  void expect_steps_of_the_formula(const std::string& dtype, const std::string& optimizer);
  Values masters(TrainStep& train_step) { return read_values(context(), train_step.model().parameters().master()); }
  Values gradients(TrainStep& train_step) { return read_values(context(), train_step.model().parameters().gradient()); }
};

double norm_of(const Values& values) {
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

Values times(Values values, double factor) {
  for (double& value : values) value *= factor;
  return values;
}

// Relative to the norm of what is expected.
double difference(const Values& found, const Values& expected) {
  Values apart = found;
  for (size_t i = 0; i < apart.size(); ++i) apart[i] -= expected[i];
  return norm_of(apart) / norm_of(expected);
}

// Another rate, and with it a graph on the GPU that is replayed, in every step; some steps clip and some do not.
void Learner::expect_steps_of_the_formula(const std::string& dtype, const std::string& optimizer) {
  const TrainConfig config =
      config_of({"trainer.dtype=" + dtype, "trainer.accumulate=3", "trainer.batch_size=2", "optimizer.clip_norm=15.5"},
                optimizer);
  const double tolerance = config.trainer.dtype == DType::float64 ? 1e-12 : 3e-5;
  TrainStep train_step(context(), config);
  const ParameterSet& parameters = train_step.model().parameters();
  testing::ReferenceOptimizer reference(context(), parameters, config.optimizer);
  const auto data = make_dataset(dataset_options(config));
  int clipped = 0;
  for (int64_t step = 1; step <= 6; ++step) {
    const double rate = 0.01 * static_cast<double>(1 + step * step % 5);
    const StepResult taken = train_step.step(testing::batches_of_step(*data, config, step), step, rate);
    const double norm =
        reference.step(context(), parameters, step, rate, 1.0 / (3.0 * initial_loss_scale(config.trainer)));
    EXPECT_NEAR(taken.gradient_norm, norm, 1e-6 * norm) << dtype << ", step " << step;
    clipped += norm > config.optimizer.clip_norm ? 1 : 0;
    for (const Parameter& parameter : parameters.all()) {
      const auto& state = reference.states.at(parameter.name);
      Values moved = read_values(context(), parameter.master), expected = state.master;
      for (size_t i = 0; i < moved.size(); ++i) moved[i] -= state.start[i], expected[i] -= state.start[i];
      EXPECT_LE(difference(moved, expected), tolerance) << dtype << ", step " << step << ", " << parameter.name;
    }
  }
  EXPECT_TRUE(clipped > 0 && clipped < 6) << clipped << " of 6 steps in " << dtype;
}

TEST_P(Learner, StepsAreThoseOfAdamW) {
  for (const char* dtype : {"float64", "float32", "bfloat16", "float16"}) {
    expect_steps_of_the_formula(dtype, "{betas: [0.71, 0.937], eps: 0.03, weight_decay: 0.23}");
  }
}

// In float64: the sign of a gradient that is nearly nothing is that of its rounding, and so are the singular vectors of
// Muon that belong to the smallest singular values.
TEST_P(Learner, StepsAreThoseOfTheOtherOptimizers) {
  for (const char* optimizer :
       {"{type: lion, betas: [0.71, 0.937], weight_decay: 0.23}",
        "{type: sgd, momentum: 0.8, nesterov: true, weight_decay: 0.023}",
        "{type: muon, lr: 0.05, adamw: {lr: 0.03, betas: [0.71, 0.937], eps: 0.03}, weight_decay: 0.23}"}) {
    SCOPED_TRACE(optimizer);
    expect_steps_of_the_formula("float64", optimizer);
  }
}

// However a step is cut: its loss, its gradient, its norm and what becomes of the weights.
TEST_P(Learner, AStepIsTheMeanOfItsBatches) {
  const auto cut = [&](int64_t batch_size, int64_t accumulate) {
    return config_of({"trainer.dtype=float64", "trainer.batch_size=" + std::to_string(batch_size),
                      "trainer.accumulate=" + std::to_string(accumulate)});
  };
  const TrainConfig whole_config = cut(4, 1);
  const auto data = make_dataset(dataset_options(whole_config));
  for (const auto& [batch_size, accumulate] : {std::pair<int64_t, int64_t>{2, 2}, {1, 4}}) {
    const TrainConfig config = cut(batch_size, accumulate);
    const auto cut_data = make_dataset(dataset_options(config));
    TrainStep whole(context(), whole_config), parts(context(), config);
    for (int64_t step = 1; step <= 4; ++step) {
      const StepResult expected = whole.step(testing::batches_of_step(*data, whole_config, step), step, 0.02);
      const StepResult found = parts.step(testing::batches_of_step(*cut_data, config, step), step, 0.02);
      EXPECT_NEAR(found.loss, expected.loss, 1e-12 * expected.loss);
      EXPECT_NEAR(found.gradient_norm, expected.gradient_norm, 1e-11 * expected.gradient_norm);
      EXPECT_LE(difference(times(gradients(parts), 1.0 / static_cast<double>(accumulate)), gradients(whole)), 1e-11);
      EXPECT_LE(difference(masters(parts), masters(whole)), 1e-12) << accumulate << " batches, step " << step;
    }
  }
}

TEST_P(Learner, TheGradientOfAStepIsItsOwn) {
  for (const int accumulate : {1, 3}) {
    const TrainConfig config = config_of({"trainer.dtype=float32", "trainer.accumulate=" + std::to_string(accumulate)});
    const auto data = make_dataset(dataset_options(config));
    TrainStep many(context(), config);
    for (int64_t step = 1; step <= 4; ++step) {
      many.step(testing::batches_of_step(*data, config, step), step, 0.0);  // the weights stay
      TrainStep one(context(), config);
      one.step(testing::batches_of_step(*data, config, step), 1, 0.0);
      EXPECT_EQ(gradients(many), gradients(one)) << "step " << step;
    }
  }
}

// A power of two changes no bit of what comes after the division.
TEST_P(Learner, TheLossScaleIsDividedOut) {
  const TrainConfig config = config_of({"trainer.dtype=float64", "trainer.accumulate=2", "optimizer.clip_norm=2"});
  const auto data = make_dataset(dataset_options(config));
  TrainStep plain(context(), config), scaled(context(), config);
  scaled.set_loss_scale({.value = 1024.0});
  for (int64_t step = 1; step <= 4; ++step) {
    const StepResult expected = plain.step(testing::batches_of_step(*data, config, step), step, 0.02);
    const StepResult found = scaled.step(testing::batches_of_step(*data, config, step), step, 0.02);
    EXPECT_EQ(found.loss, expected.loss);
    EXPECT_EQ(found.gradient_norm, expected.gradient_norm);
    EXPECT_EQ(gradients(scaled), times(gradients(plain), 1024.0));
    EXPECT_EQ(masters(scaled), masters(plain));
    EXPECT_NEAR(expected.gradient_norm, 0.5 * norm_of(gradients(plain)), 1e-12 * expected.gradient_norm);
  }
}

HEDDLE_ON_DEVICES(Learner);

}  // namespace
}  // namespace heddle::learner_test
