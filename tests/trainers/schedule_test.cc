#include "trainers/schedule.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/trainers/test_config.h"

namespace heddle {
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

TEST(ScheduleTest, WithoutWarmupTheFirstStepIsNearTheFullRate) {
  TrainConfig without = config("cosine");
  without.schedule.warmup_steps = 0;
  EXPECT_NEAR(learning_rate(without, 1), 1.0, 1e-3);
}

}  // namespace
}  // namespace heddle
