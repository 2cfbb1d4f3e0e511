#include "trainers/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <ios>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"
#include "trainers/train_step.h"

namespace heddle::evaluate_test {
namespace {

TEST(EvaluateTest, LossAndAccuracyAreThoseOfTheReferenceAndNothingChanges) {
  // So many that every class is sometimes the likeliest and right.
  const TrainConfig config = testing::tiny_train_config({"trainer.dtype=float64", "trainer.eval_batches=40"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  const testing::ReferenceModel reference(context, config.model, train_step.model().parameters());
  testing::ReferenceModel::Loss expected;
  for (int64_t index = 0; index < 40; ++index) {
    const auto batch = reference.loss(data->validation_batch(4 * index));
    expected.sum += batch.sum;
    expected.targets += batch.targets;
    expected.right += batch.right;
  }
  ASSERT_EQ(expected.targets, 40 * 4 * 6);

  const std::vector<double> before = read_values(context, train_step.model().parameters().master());
  const Evaluation evaluation = evaluate(context, train_step.model(), *data);
  EXPECT_NEAR(evaluation.loss, expected.mean(), 1e-13);
  EXPECT_EQ(evaluation.accuracy, static_cast<double>(expected.right) / static_cast<double>(expected.targets));
  EXPECT_EQ(evaluation.targets, expected.targets);
  EXPECT_EQ(evaluate(context, train_step.model(), *data).loss, evaluation.loss);
  EXPECT_EQ(read_values(context, train_step.model().parameters().master()), before);
}

// Sequences weigh as much as they have targets, and text has no accuracy.
TEST(EvaluateTest, EveryTokenOfAShortTextCountsOnce) {
  const testing::TempFolder folder;
  const std::string path = (folder / "text").string();
  std::ofstream(path, std::ios::binary) << std::string(50, 'a') + std::string(51, 'b') + std::string(49, 'c');
  const TrainConfig config =
      testing::tiny_train_config({"data={type: text, path: \"" + path + "\", validation_fraction: 0.6}",
                                  "model.vocab_size=256", "trainer.dtype=float64"});
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  ASSERT_EQ(data->validation_sequences(), 6);  // 90 tokens: five windows of 16 tokens and one of 9
  const testing::ReferenceModel reference(context, config.model, train_step.model().parameters());
  const auto first = reference.loss(data->validation_batch(0)), second = reference.loss(data->validation_batch(4));
  ASSERT_EQ(first.targets, 4 * 16);
  ASSERT_EQ(second.targets, 16 + 9);
  const Evaluation evaluation = evaluate(context, train_step.model(), *data);
  EXPECT_EQ(evaluation.targets, 89);
  EXPECT_NEAR(evaluation.loss, (first.sum + second.sum) / 89.0, 1e-12);
  EXPECT_TRUE(std::isnan(evaluation.accuracy));
}

// A batch of an evaluation is as large as a step, however the step is cut into batches.
TEST(EvaluateTest, HowAStepIsCutDoesNotMatter) {
  const testing::TempFolder folder;
  const std::string path = (folder / "text").string();
  Random random(3, RandomStream::test);
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>('a' + random.next_below(26));
  std::ofstream(path, std::ios::binary) << text;
  for (const std::string& batches : {std::string("3"), std::string("all")}) {
    std::vector<Evaluation> evaluations;
    for (const auto& [batch_size, accumulate] : std::vector<std::pair<int, int>>{{4, 1}, {2, 2}, {1, 4}}) {
      const TrainConfig config = testing::tiny_train_config(
          {"data={type: text, path: \"" + path + "\", validation_fraction: 0.1}", "model.vocab_size=256",
           "trainer.batch_size=" + std::to_string(batch_size), "trainer.accumulate=" + std::to_string(accumulate),
           "trainer.eval_batches=" + batches});
      Context context(Device{}, {.threads = 1});
      TrainStep train_step(context, config);
      evaluations.push_back(evaluate(context, train_step.model(), *make_dataset(dataset_options(config))));
    }
    EXPECT_EQ(evaluations[0].targets, batches == "3" ? 3 * 4 * 16 : 499);
    for (const Evaluation& evaluation : evaluations) {
      EXPECT_EQ(evaluation.targets, evaluations[0].targets);
      EXPECT_NEAR(evaluation.loss, evaluations[0].loss, 1e-7 * evaluation.loss) << batches;
    }
  }
}

}  // namespace
}  // namespace heddle::evaluate_test
