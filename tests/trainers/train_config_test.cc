#include "trainers/train_config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "core/config/config_load.h"
#include "tests/config/bad_configs.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using testing::BadConfig;

class BadConfigs : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, NamesThePlaceAndTheFix) {
  const BadConfig& bad = GetParam();
  const testing::TempFolder folder;
  const fs::path path = testing::write_bad_config(bad, folder.path());
  const bool of_command_line = bad.location.starts_with("--set");
  const std::string location = of_command_line ? bad.location : (folder / bad.location).string();
  try {
    load_train_config(path.string(), bad.overrides);
    ADD_FAILURE() << "accepted; expected an error at " << location;
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.location().to_string(), location) << error.what();
    EXPECT_NE(error.message().find(bad.message), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()), location + ": " + error.message());
  }
}

INSTANTIATE_TEST_SUITE_P(Table, BadConfigs, ::testing::ValuesIn(testing::bad_configs()),
                         [](const auto& info) { return info.param.name; });

std::string good_config() {
  std::string text;
  for (const std::string& line : testing::good_config_lines()) text += line + "\n";
  return text;
}

TEST(TrainConfigTest, ReadsWhatIsWrittenAndFillsInTheRest) {
  const TrainConfig config = read_train_config(parse_config(good_config()));
  EXPECT_EQ(config.seed, 1u);
  EXPECT_EQ(config.data.type, DataType::text);
  EXPECT_EQ(config.data.path, "text.txt");
  EXPECT_EQ(config.data.validation_fraction, 0.1);
  EXPECT_EQ(config.model.vocab_size, 256);
  EXPECT_EQ(config.model.mixer.require<std::string>("type"), "lightning");
  EXPECT_EQ(config.optimizer.lr, 3e-3);
  EXPECT_EQ(config.optimizer.clip_norm, 1.0);
  EXPECT_EQ(config.schedule.type, ScheduleType::cosine);
  EXPECT_EQ(config.schedule.warmup_steps, 10);
  EXPECT_EQ(config.trainer.dtype, DType::float32);
  EXPECT_EQ(config.trainer.accumulate, 1);
  ASSERT_TRUE(config.trainer.sample.has_value());
  EXPECT_EQ(config.trainer.sample->prompt, "a");
  EXPECT_EQ(config.trainer.sample->temperature, 0.8);
}

TEST(TrainConfigTest, ResolvedConfigIsCompleteAndReadsBackEqual) {
  const std::string first = read_train_config(parse_config(good_config())).node.dump();
  for (const char* key : {"clip_norm: 1", "accumulate: 1", "dtype: float32", "min_lr: 0", "temperature: 0.8"}) {
    EXPECT_NE(first.find(key), std::string::npos) << key << " is not in\n" << first;
  }
  const TrainConfig again = read_train_config(parse_config(first));
  EXPECT_EQ(again.node.dump(), first);
}

TEST(TrainConfigTest, MissingFileIsAConfigError) {
  EXPECT_THROW(load_train_config("nowhere/config.yaml"), ConfigError);
}

TEST(TrainConfigTest, ASampleOfTheBaseCanBeTakenAway) {
  const std::vector<std::string> overrides = {"trainer.sample=null"};
  const TrainConfig config = read_train_config(parse_config(good_config(), "config", overrides));
  EXPECT_FALSE(config.trainer.sample.has_value());
  EXPECT_FALSE(read_train_config(parse_config(config.node.dump())).trainer.sample.has_value());
}

TEST(TrainConfigTest, ShippedConfigsAreGood) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(HEDDLE_SOURCE_DIR) / "configs")) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.find("_base.") != std::string::npos) continue;
    EXPECT_NO_THROW(load_train_config(entry.path().string())) << name;
    ++count;
  }
  EXPECT_GE(count, 3);
}

}  // namespace
}  // namespace heddle
