// model.loss_chunk changes losses, gradients and evaluations by rounding alone, and saves the memory of the logits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/dry_run.h"
#include "trainers/evaluate.h"
#include "trainers/train_step.h"

namespace heddle::loss_chunk_test {
namespace {

using ::testing::DoubleNear;
using ::testing::Pointwise;

struct Trained {
  std::vector<double> losses, gradients, parameters;
  double evaluated = 0.0;
};

Trained train(const TrainConfig& config) {
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  Trained trained;
  for (int64_t step = 1; step <= 3; ++step) {
    const StepResult result = train_step.step(testing::batches_of_step(*data, config, step), step, config.optimizer.lr);
    trained.losses.push_back(result.loss);
    for (const Parameter& parameter : train_step.model().parameters().all()) {
      const std::vector<double> values = read_values(context, parameter.gradient.tensor);
      trained.gradients.insert(trained.gradients.end(), values.begin(), values.end());
    }
  }
  trained.parameters = read_values(context, train_step.model().parameters().master());
  trained.evaluated = evaluate(context, train_step.model(), *data).loss;
  return trained;
}

void expect_rounding_alone(TrainConfig config) {
  config.trainer.dtype = DType::float64;
  config.trainer.accumulate = 2;
  const Trained whole = train(config);
  for (const int64_t chunk : {5, 1000000}) {
    config.model.loss_chunk = chunk;
    const Trained in_chunks = train(config);
    EXPECT_THAT(in_chunks.losses, Pointwise(DoubleNear(1e-12), whole.losses)) << chunk;
    EXPECT_THAT(in_chunks.gradients, Pointwise(DoubleNear(1e-10), whole.gradients)) << chunk;
    EXPECT_THAT(in_chunks.parameters, Pointwise(DoubleNear(1e-9), whole.parameters)) << chunk;
    EXPECT_NEAR(in_chunks.evaluated, whole.evaluated, 1e-9) << chunk;
  }
}

// Of a text every token counts.
TEST(LossChunkTest, ChangesRoundingAloneOnText) {
  const testing::TempFolder folder;
  TrainConfig config = testing::tiny_train_config(testing::learn_text((folder / "text").string(), "60"));
  expect_rounding_alone(config);
  config.model.tie_embeddings = true;
  expect_rounding_alone(config);
}

TEST(LossChunkTest, ChangesRoundingAloneWhereFewTargetsCount) { expect_rounding_alone(testing::tiny_train_config()); }

TEST(LossChunkTest, HoldsTheLogitsOfAChunkAlone) {
  const auto peak = [](int64_t chunk) {
    TrainConfig config = testing::tiny_train_config({"trainer.batch_size=32", "trainer.sequence_length=64"});
    config.model.vocab_size = 50000;
    config.model.loss_chunk = chunk;
    return static_cast<int64_t>(dry_run(config).peak_bytes);
  };
  constexpr int64_t kTokens = 32 * 64, kRow = 50000 * sizeof(float);
  EXPECT_GE(peak(0) - peak(128), (kTokens - 2 * 128) * kRow);
}

}  // namespace
}  // namespace heddle::loss_chunk_test
