#include "trainers/schedule.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "tests/trainers/test_config.h"

namespace heddle::schedule_test {
namespace {

TrainConfig config(const std::string& type) {
  TrainConfig config = testing::tiny_train_config({"optimizer.lr=1.0", "trainer.steps=110", "schedule.min_lr=0.1"});
  config.schedule.warmup_steps = 10;
  config.schedule.type = type == "linear"   ? ScheduleType::linear
                         : type == "cosine" ? ScheduleType::cosine
                                            : ScheduleType::constant;
  return config;
}

TEST(ScheduleTest, WarmsUpAndEndsAtMinLr) {
  for (const char* type : {"cosine", "linear", "constant"}) {
    EXPECT_DOUBLE_EQ(learning_rate(config(type), 1), 0.1) << type;
    EXPECT_DOUBLE_EQ(learning_rate(config(type), 10), 1.0) << type;
  }
  EXPECT_DOUBLE_EQ(learning_rate(config("cosine"), 60), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(config("linear"), 60), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(config("linear"), 35), 0.775);
  EXPECT_DOUBLE_EQ(learning_rate(config("cosine"), 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(config("linear"), 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(config("constant"), 110), 1.0);
}

// Warm-up 1 .. 10, the highest rate up to step 90, then down in 20 steps.
TEST(ScheduleTest, WsdStaysUpAndFallsAtTheEnd) {
  TrainConfig wsd = config("constant");
  wsd.schedule.type = ScheduleType::wsd;
  wsd.schedule.min_lr = 0.1;
  wsd.schedule.decay_steps = 20;
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 1), 0.1);
  for (const int64_t step : {10, 11, 50, 90}) EXPECT_DOUBLE_EQ(learning_rate(wsd, step), 1.0) << step;
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 95), 1.0 - 0.9 * 0.25);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 110), 0.1);
  wsd.schedule.decay_shape = DecayShape::sqrt;
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 90), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 95), 1.0 - 0.9 * 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 110), 0.1);
}

TEST(ScheduleTest, TheDecayOfWsdMayBeAShareOfAllSteps) {
  TrainConfig wsd = config("constant");
  wsd.schedule.type = ScheduleType::wsd;
  wsd.schedule.min_lr = 0.0;
  wsd.schedule.decay_fraction = 0.5;
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 55), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 66), 0.8);
  wsd.schedule.decay_fraction = 1e-6;  // at least the last step
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 109), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 110), 0.0);
  wsd.schedule.decay_fraction = 1.0;  // but nothing of the warm-up
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 60), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(wsd, 110), 0.0);
}

TEST(ScheduleTest, WithoutWarmupTheFirstStepIsNearTheFullRate) {
  TrainConfig without = config("cosine");
  without.schedule.warmup_steps = 0;
  EXPECT_NEAR(learning_rate(without, 1), 1.0, 1e-3);
}

}  // namespace
}  // namespace heddle::schedule_test
