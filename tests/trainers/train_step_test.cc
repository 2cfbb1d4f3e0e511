#include "trainers/train_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"

namespace heddle::train_step_test {
namespace {

using ::testing::HasSubstr;

std::vector<double> train_steps(TrainStep& train_step, const TrainConfig& config, int64_t steps) {
  const auto data = make_dataset(dataset_options(config));
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) {
    losses.push_back(train_step.step(testing::batches_of_step(*data, config, step), step, config.optimizer.lr).loss);
  }
  return losses;
}

// Of the flat buffer, in which the gaps are zero.
double norm_of(const std::vector<double>& values) {
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

TEST(TrainStepTest, TheLossIsThatOfTheReference) {
  const std::map<std::string, double> tolerances = {
      {"float64", 1e-13}, {"float32", 1e-6}, {"float16", 1e-3}, {"bfloat16", 1e-2}};
  for (const auto& [dtype, tolerance] : tolerances) {
    const TrainConfig config = testing::tiny_train_config({"trainer.dtype=" + dtype, "trainer.accumulate=3"});
    Context context(Device{}, {.threads = 1});
    TrainStep train_step(context, config);
    const testing::ReferenceModel reference(context, config.model, train_step.model().parameters());
    const std::vector<Batch> batches = testing::batches_of_step(*make_dataset(dataset_options(config)), config, 1);
    double expected = 0.0;
    for (const Batch& batch : batches) expected += reference.loss(batch).mean() / 3.0;
    EXPECT_NEAR(train_step.step(batches, 1, 1e-3).loss, expected, tolerance * expected) << dtype;
  }
}

// The gradient that the step leaves behind against central differences of the reference, along random directions.
TEST(TrainStepTest, TheGradientIsThatOfTheReference) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float64"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const testing::ReferenceModel reference(context, config.model, train_step.model().parameters());
  const std::vector<Batch> batch = testing::batches_of_step(*make_dataset(dataset_options(config)), config, 1);
  const StepResult result = train_step.step(batch, 1, 1e-3);
  EXPECT_NEAR(result.gradient_norm, norm_of(read_values(context, train_step.model().parameters().gradient())),
              1e-13 * result.gradient_norm);

  constexpr double h = 3e-8;
  Random random(1, RandomStream::test);
  for (int direction = 0; direction < 4; ++direction) {
    testing::ReferenceModel ahead = reference, behind = reference;
    double expected = 0.0;
    for (const Parameter& parameter : train_step.model().parameters().all()) {
      const std::vector<double> gradient = read_values(context, parameter.gradient.tensor);
      for (size_t i = 0; i < gradient.size(); ++i) {
        const double along = random.next_normal();
        ahead.weights[parameter.name][i] += h * along;
        behind.weights[parameter.name][i] -= h * along;
        expected += gradient[i] * along;
      }
    }
    const double slope = (ahead.loss(batch[0]).mean() - behind.loss(batch[0]).mean()) / (2.0 * h);
    EXPECT_NEAR(slope, expected, 3e-7 * result.gradient_norm);
  }
}

// In the first step of AdamW the moments are the gradient g and its square: the update is lr (g / (|g| + eps) + decay
// w).
TEST(TrainStepTest, TheFirstUpdateIsThatOfAdamW) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.dtype=float64", "optimizer={clip_norm: 0.25, eps: 0.01, weight_decay: 0.5}"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const ParameterSet& parameters = train_step.model().parameters();
  const std::vector<double> before = read_values(context, parameters.master());
  const StepResult result =
      train_step.step(testing::batches_of_step(*make_dataset(dataset_options(config)), config, 1), 1, 1e-3);
  ASSERT_GT(result.gradient_norm, 0.25);
  const std::vector<double> gradient = read_values(context, parameters.gradient());
  const std::vector<double> after = read_values(context, parameters.master());
  size_t index = 0;
  for (const Parameter& parameter : parameters.all()) {
    const auto begin = static_cast<size_t>(parameters.offset(index++));
    const double decay = parameter.weight_decay ? 0.5 : 0.0;
    for (size_t i = begin; i < begin + static_cast<size_t>(numel(parameter.shape)); ++i) {
      const double g = gradient[i] * 0.25 / result.gradient_norm;
      EXPECT_NEAR(after[i], before[i] - 1e-3 * (g / (std::abs(g) + 0.01) + decay * before[i]), 1e-15) << parameter.name;
    }
  }
}

TEST(TrainStepTest, EveryDtypeLearnsOneBatchByHeart) {
  for (const char* dtype : {"float32", "float64", "bfloat16", "float16"}) {
    const TrainConfig config = testing::tiny_train_config({std::string("trainer.dtype=") + dtype});
    Context context(Device{}, {.threads = 1});
    TrainStep train_step(context, config);
    const std::vector<Batch> batch = testing::batches_of_step(*make_dataset(dataset_options(config)), config, 1);
    const double first = train_step.step(batch, 1, 3e-3).loss;
    for (int64_t step = 2; step <= 100; ++step) train_step.step(batch, step, 3e-3);
    EXPECT_LT(train_step.step(batch, 101, 3e-3).loss, 0.5 * first) << dtype;
  }
}

TEST(TrainStepTest, MicroBatchesAreOneLargerBatch) {
  const TrainConfig whole = testing::tiny_train_config({"trainer.dtype=float64", "trainer.batch_size=8"});
  const TrainConfig parts =
      testing::tiny_train_config({"trainer.dtype=float64", "trainer.batch_size=2", "trainer.accumulate=4"});
  Context context(Device{}, {.threads = 1});
  TrainStep first(context, whole), second(context, parts);
  const std::vector<double> a = train_steps(first, whole, 3), b = train_steps(second, parts, 3);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-9);
}

TEST(TrainStepTest, ThreadsDoNotChangeABit) {
  const TrainConfig config = testing::tiny_train_config();
  const auto weights = [&](int threads) {
    Context context(Device{}, {.threads = threads});
    TrainStep train_step(context, config);
    train_steps(train_step, config, 4);
    return read_values(context, train_step.model().parameters().master());
  };
  const std::vector<double> one = weights(1);
  EXPECT_EQ(one, weights(2));
  EXPECT_EQ(one, weights(5));
}

TEST(TrainStepTest, WeightsThatAreNoNumbersAreNamedBeforeTheStep) {
  const TrainConfig config = testing::tiny_train_config();
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  train_steps(train_step, config, 1);
  Parameter& parameter = train_step.model().parameters().all()[3];
  std::vector<double> values = read_values(context, parameter.master);
  values[0] = std::nan("");
  write_values(context, parameter.master, values);
  const auto data = make_dataset(dataset_options(config));
  try {
    train_step.step(testing::batches_of_step(*data, config, 2), 2, 1e-3);
    ADD_FAILURE() << "no error";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("loss is nan at step 2: parameter " + parameter.name + " was not finite before (nan)"));
  }
}

// Steps whose gradient overflows are left out, as if they had not been; then the scale fits.
TEST(TrainStepTest, ADynamicLossScaleLeavesOverflowsOut) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float16", "trainer.loss_scale=dynamic"});
  Context context(Device{}, {.threads = 1});
  const auto data = make_dataset(dataset_options(config));
  TrainStep scaled(context, config);
  EXPECT_EQ(scaled.loss_scale().value, 64.0);
  scaled.set_loss_scale({.value = 0x1p40, .good_steps = 7});
  const std::vector<double> before = read_values(context, scaled.model().parameters().master());
  int64_t step = 1;
  while (scaled.step(testing::batches_of_step(*data, config, 1), step, 1e-3).left_out) {
    EXPECT_EQ(read_values(context, scaled.model().parameters().master()), before);
    EXPECT_EQ(scaled.loss_scale().value, std::ldexp(1.0, static_cast<int>(40 - step)));
    ASSERT_LT(++step, 40);
  }
  EXPECT_GT(step, 5);
  EXPECT_EQ(scaled.loss_scale().left_out, step - 1);
  EXPECT_EQ(scaled.loss_scale().good_steps, 1);

  TrainStep fitting(context, config);
  fitting.set_loss_scale({.value = scaled.loss_scale().value});
  EXPECT_FALSE(fitting.step(testing::batches_of_step(*data, config, 1), 1, 1e-3).left_out);
  EXPECT_EQ(read_values(context, scaled.model().parameters().master()),
            read_values(context, fitting.model().parameters().master()));
}

TEST(TrainStepTest, ALossScaleGrowsAfterManyGoodSteps) {
  LossScale scale{.value = 8.0};
  for (int64_t i = 1; i < LossScale::kGrowthSteps; ++i) scale.succeed();
  EXPECT_EQ(scale.value, 8.0);
  scale.succeed();
  EXPECT_EQ(scale.value, 16.0);
  scale.succeed();
  EXPECT_TRUE(scale.fail());
  EXPECT_EQ(scale.value, 8.0);
  EXPECT_EQ(scale.good_steps, 0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(scale.fail());
  EXPECT_FALSE(scale.fail());  // 1: the gradient itself overflows
}

TEST(TrainStepTest, OverflowIsNamedAndLeavesTheParametersAlone) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float16"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  // Large but finite weights: float16 overflows inside the model.
  for (Parameter& parameter : train_step.model().parameters().all()) {
    if (parameter.name != "blocks.1.channel.w1.weight" && !parameter.name.starts_with("blocks.1.channel")) continue;
    write_values(context, parameter.value, std::vector<double>(static_cast<size_t>(numel(parameter.shape)), 6e4));
  }
  const std::vector<double> before = read_values(context, train_step.model().parameters().master());
  const auto data = make_dataset(dataset_options(config));
  try {
    train_step.step(testing::batches_of_step(*data, config, 1), 1, 1e-3);
    ADD_FAILURE() << "no error";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(), HasSubstr("loss is nan at step 1: blocks.1.channel"));
  }
  EXPECT_EQ(read_values(context, train_step.model().parameters().master()), before);
}

// What the memory report of a config promises: the accounting needs no data.
TEST(TrainStepTest, PeakBytesOnMetaEqualThoseOnTheCpu) {
  for (const char* dtype : {"float32", "bfloat16"}) {
    for (const bool tied : {false, true}) {
      // The shapes of configs/toy_kjv.yaml; a smaller batch, so that the test is short.
      const TrainConfig config =
          load_train_config(std::string(HEDDLE_SOURCE_DIR) + "/configs/toy_kjv.yaml",
                            std::vector<std::string>{
                                "trainer.batch_size=2", "trainer.accumulate=2", std::string("trainer.dtype=") + dtype,
                                tied ? "model.tie_embeddings=true" : "model.tie_embeddings=false"});
      Batch batch;
      batch.size = config.trainer.batch_size;
      batch.length = config.trainer.sequence_length;
      batch.tokens.assign(static_cast<size_t>(batch.size * batch.length), 1);
      batch.targets = batch.tokens;
      const std::vector<Batch> batches(2, batch);
      const auto stats = [&](Device device) {
        Context context(device, {.threads = 1});
        TrainStep train_step(context, config);
        for (int64_t step = 1; step <= 2; ++step) train_step.step(batches, step, 1e-3);
        return std::pair(context.allocator().stats(), context.allocator().scopes());
      };
      const auto [cpu, cpu_scopes] = stats({DeviceType::cpu});
      const auto [meta, meta_scopes] = stats({DeviceType::meta});
      EXPECT_GT(cpu.allocated.peak, size_t{10} << 20);
      EXPECT_EQ(cpu.allocated.peak, meta.allocated.peak) << dtype;
      EXPECT_EQ(cpu.allocated.current, meta.allocated.current) << dtype;
      EXPECT_EQ(cpu.reserved.peak, meta.reserved.peak) << dtype;
      EXPECT_EQ(cpu.allocations, meta.allocations) << dtype;
      for (int category = 0; category < kMemoryCategories; ++category) {
        EXPECT_EQ(cpu.by_category[category].peak, meta.by_category[category].peak)
            << name(static_cast<MemoryCategory>(category));
      }
      ASSERT_EQ(cpu_scopes.size(), meta_scopes.size());
      for (size_t i = 0; i < cpu_scopes.size(); ++i) {
        EXPECT_EQ(cpu_scopes[i].scope, meta_scopes[i].scope);
        EXPECT_EQ(cpu_scopes[i].allocated.peak, meta_scopes[i].allocated.peak) << cpu_scopes[i].scope;
        EXPECT_EQ(cpu_scopes[i].at_peak, meta_scopes[i].at_peak) << cpu_scopes[i].scope;
      }
    }
  }
}

}  // namespace
}  // namespace heddle::train_step_test
