#include "trainers/train_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;

std::vector<Batch> batches_of(const Dataset& data, int64_t step, int64_t count) {
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) batches.push_back(data.training_batch((step - 1) * count + i));
  return batches;
}

std::vector<double> train_steps(TrainStep& train_step, const TrainConfig& config, int64_t steps) {
  const auto data = make_dataset(config);
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) {
    losses.push_back(
        train_step.step(batches_of(*data, step, config.trainer.accumulate), step, config.optimizer.lr).loss);
  }
  return losses;
}

TEST(TrainStepTest, EveryDtypeLearnsOneBatchByHeart) {
  for (const char* dtype : {"float32", "float64", "bfloat16", "float16"}) {
    const TrainConfig config = testing::tiny_train_config({std::string("trainer.dtype=") + dtype});
    Context context(Device{}, {.threads = 1});
    TrainStep train_step(context, config);
    const std::vector<Batch> batch = batches_of(*make_dataset(config), 1, 1);
    const double first = train_step.step(batch, 1, 3e-3).loss;
    for (int64_t step = 2; step <= 100; ++step) train_step.step(batch, step, 3e-3);
    EXPECT_NEAR(first, std::log(8.0), 1.0) << dtype;
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

TEST(TrainStepTest, EvaluationIsExactAndChangesNothing) {
  const TrainConfig config = testing::tiny_train_config();
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(config);
  const std::vector<double> before = read_values(context, train_step.model().parameters().master());
  const Evaluation first = evaluate(context, train_step.model(), *data);
  const Evaluation second = evaluate(context, train_step.model(), *data);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.targets, 2 * 4 * 6);
  EXPECT_NEAR(first.loss, std::log(8.0), 1.0);
  EXPECT_NEAR(first.accuracy, 1.0 / 8.0, 0.2);
  EXPECT_EQ(read_values(context, train_step.model().parameters().master()), before);
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
  const auto data = make_dataset(config);
  try {
    train_step.step(batches_of(*data, 2, 1), 2, 1e-3);
    ADD_FAILURE() << "no error";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(), HasSubstr("step 2: the loss is nan; first not finite: parameter " + parameter.name));
  }
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
  const auto data = make_dataset(config);
  try {
    train_step.step(batches_of(*data, 1, 1), 1, 1e-3);
    ADD_FAILURE() << "no error";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(), HasSubstr("step 1: the loss is"));
    EXPECT_THAT(error.what(), HasSubstr("first not finite: the output of blocks.1.channel;"));
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
}  // namespace heddle
