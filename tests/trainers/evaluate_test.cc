#include "trainers/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <ios>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"
#include "trainers/train_step.h"

namespace heddle {
namespace {

TEST(EvaluateTest, LossAndAccuracyAreThoseOfTheReferenceAndNothingChanges) {
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float64"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  const testing::ReferenceModel reference(context, train_step.model().parameters());
  testing::ReferenceModel::Loss expected;
  for (int64_t index = 0; index < 2; ++index) {
    const auto batch = reference.loss(data->validation_batch(index));
    expected.sum += batch.sum;
    expected.targets += batch.targets;
    expected.right += batch.right;
  }
  ASSERT_EQ(expected.targets, 2 * 4 * 6);

  const std::vector<double> before = read_values(context, train_step.model().parameters().master());
  const Evaluation evaluation = evaluate(context, train_step.model(), *data);
  EXPECT_NEAR(evaluation.loss, expected.mean(), 1e-13);
  EXPECT_EQ(evaluation.accuracy, static_cast<double>(expected.right) / static_cast<double>(expected.targets));
  EXPECT_EQ(evaluation.targets, expected.targets);
  EXPECT_EQ(evaluate(context, train_step.model(), *data).loss, evaluation.loss);
  EXPECT_EQ(read_values(context, train_step.model().parameters().master()), before);
}

// Batches weigh as much as they have targets, and text has no accuracy.
TEST(EvaluateTest, RowsPastTheEndOfTheTextDoNotCount) {
  const testing::TempFolder folder;
  const std::string path = (folder / "text").string();
  std::ofstream(path, std::ios::binary) << std::string(50, 'a') + std::string(51, 'b') + std::string(49, 'c');
  const TrainConfig config =
      testing::tiny_train_config({"data={type: text, path: \"" + path + "\", validation_fraction: 0.6}",
                                  "model.vocab_size=256", "trainer.dtype=float64"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  ASSERT_EQ(data->validation_batches(), 2);  // five windows of 16 tokens in two batches of four
  const testing::ReferenceModel reference(context, train_step.model().parameters());
  const auto first = reference.loss(data->validation_batch(0)), second = reference.loss(data->validation_batch(1));
  ASSERT_EQ(second.targets, 16);
  const Evaluation evaluation = evaluate(context, train_step.model(), *data);
  EXPECT_EQ(evaluation.targets, 5 * 16);
  EXPECT_NEAR(evaluation.loss, (first.sum + second.sum) / (5.0 * 16.0), 1e-12);
  EXPECT_TRUE(std::isnan(evaluation.accuracy));
}

}  // namespace
}  // namespace heddle
