#include "trainers/data/read_ahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/error.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/trainer.h"

namespace heddle::read_ahead_test {
namespace {

using ::testing::HasSubstr;

// Sequences that are their own numbers; one of them cannot be made.
class CountedData : public Dataset {
 public:
  explicit CountedData(int64_t batch, int64_t damaged = -1) : Dataset({batch, 3, 1, {}}), damaged_(damaged) {}
  int64_t validation_sequences() const override { return 1; }
  int64_t made() const { return made_; }
  // Whether the thread that makes sequences takes SIGTERM.
  bool takes_signals() const { return takes_signals_; }

 protected:
  void training_sequence(int64_t index, int32_t* tokens, int32_t*) const override {
    check(index != damaged_, "sequence {} is damaged", index);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    takes_signals_ = sigismember(&blocked, SIGTERM) == 0;
    tokens[0] = static_cast<int32_t>(index);
    ++made_;
  }
  void validation_sequence(int64_t, int32_t*, int32_t*) const override {}

 private:
  int64_t damaged_;
  mutable std::atomic<int64_t> made_ = 0;
  mutable std::atomic<bool> takes_signals_ = true;
};

TEST(ReadAheadThreaded, GivesTheBatchesOfEveryStepInOrder) {
  const CountedData data(2);
  for (const size_t depth : {1, 2, 5}) {
    ReadAhead batches(data, {.first_sequence = 100, .steps = 50, .micro_batches = 3, .batch_size = 2, .depth = depth});
    int64_t sequence = 100;
    for (int step = 0; step < 50; ++step) {
      const std::vector<Batch> of_step = batches.next();
      ASSERT_EQ(of_step.size(), 3u);
      for (const Batch& batch : of_step) {
        for (const size_t row : {0, 1}) ASSERT_EQ(batch.tokens[row * 3], sequence++);
      }
    }
    EXPECT_THROW(batches.next(), Error);
  }
  EXPECT_FALSE(data.takes_signals());
}

// The thread waits for room: no more than `depth` steps and the one that it makes.
TEST(ReadAheadThreaded, KeepsFewBatches) {
  const CountedData data(1);
  ReadAhead batches(data, {.first_sequence = 0, .steps = 1000, .micro_batches = 1, .batch_size = 1, .depth = 3});
  for (int64_t step = 1; step <= 5; ++step) {
    batches.next();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_LE(data.made(), step + 3 + 1);
  }
}

TEST(ReadAheadThreaded, EndsWithoutAllOfItsSteps) {
  const CountedData data(1);
  for (int i = 0; i < 20; ++i) {
    ReadAhead batches(data, {.first_sequence = 0, .steps = 1 << 30, .micro_batches = 1, .batch_size = 1});
    for (int step = 0; step < i % 3; ++step) batches.next();
  }
  EXPECT_LE(data.made(), 20 * (2 + 2 + 1));
  ReadAhead never_asked(data, {.first_sequence = 0, .steps = 5});
}

// An error comes at the step that needs what could not be made, not before, and again.
TEST(ReadAheadThreaded, AnErrorReachesItsStep) {
  const CountedData data(2, 9);
  ReadAhead batches(data, {.first_sequence = 0, .steps = 20, .micro_batches = 1, .batch_size = 2});
  for (int step = 0; step < 4; ++step) EXPECT_EQ(batches.next()[0].tokens[0], 2 * step);
  for (int again = 0; again < 2; ++again) {
    try {
      batches.next();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "sequence 9 is damaged");
    }
  }
}

// A data set is read by two threads at once: evaluations go on while the next batches are made.
TEST(ReadAheadThreaded, TheDataAreEvaluatedMeanwhile) {
  const testing::TempFolder folder;
  const TrainConfig config = testing::tiny_train_config(testing::learn_text((folder / "text").string(), "60"));
  const auto data = make_dataset(dataset_options(config)), other = make_dataset(dataset_options(config));
  ReadAhead batches(*data, {.first_sequence = 8, .steps = 30, .micro_batches = 2, .batch_size = 4});
  for (int64_t step = 0; step < 30; ++step) {
    const std::vector<Batch> found = batches.next();
    EXPECT_EQ(data->validation_batch(0).tokens, other->validation_batch(0).tokens);
    EXPECT_EQ(found[1].tokens, other->training_batch(8 + 8 * step + 4).tokens);
  }
}

// A run that stops, continues and evaluates in between ends as one that does not.
TEST(ReadAheadThreaded, ARunThatGoesOnReadsTheSameBatches) {
  const testing::TempFolder folder;
  std::vector<std::string> overrides = testing::learn_text((folder / "text").string(), "12");
  for (const char* more : {"trainer.eval_every=2", "trainer.checkpoint_every=0", "trainer.accumulate=2"}) {
    overrides.emplace_back(more);
  }
  const TrainConfig config = testing::tiny_train_config(overrides);
  const auto trained = [&](const std::string& name, int stop_after) {
    TrainResult result;
    do {
      Context context(Device{}, {.threads = 2});
      TrainOptions options;
      options.folder = folder / name;
      options.log = nullptr;
      options.stop_requested = [left = stop_after]() mutable { return left-- == 0; };
      result = train(context, config, options);
    } while (!result.finished);
    return read_file(folder / name / "checkpoints/step_12/model.safetensors") +
           read_file(folder / name / "metrics.csv");
  };
  const std::string whole = trained("whole", -1);
  EXPECT_EQ(trained("by_5", 5), whole);
  EXPECT_EQ(trained("by_1", 1), whole);
}

}  // namespace
}  // namespace heddle::read_ahead_test
