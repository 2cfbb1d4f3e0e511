// Models side by side: the losses are those of training, the bytes of the state those of the mixer, and models that
// would not see the same tokens are refused. No test looks at a time.
#include "tools/compare.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "tools/compare_report.h"
#include "trainers/trainer.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;
using testing::TempFolder;

class CompareTest : public ::testing::Test {
 protected:
  CompareTest() {
    options_.steps = 6;
    options_.recall_steps = 3;
    options_.lengths = {8, 16};
    options_.contexts = {8, 40};
    options_.log = nullptr;
    std::ofstream(lightning_) << testing::tiny_config();
    std::ofstream(softmax_) << "base: lightning.yaml\nmodel: {mixer: {type: softmax_attention, heads: 2}}\n";
  }

  std::string file(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
  Comparison measure(const std::vector<std::string>& paths) {
    Comparison comparison;
    const auto keep = [&](const Comparison& measured) { comparison = measured; };
    finished_ = compare(context_, load_subjects(paths, options_), options_, keep);
    return comparison;
  }
  Evaluation train_alone(const std::string& path, std::vector<std::string> overrides) {
    TrainOptions options;
    options.folder = folder_ / std::to_string(++runs_);
    options.log = nullptr;
    return train(context_, load_train_config(path, overrides), options).evaluation.value();
  }
  std::string refusal(const std::vector<std::string>& paths) {
    try {
      load_subjects(paths, options_);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  }

  TempFolder folder_;
  const std::string lightning_ = (folder_ / "lightning.yaml").string();
  const std::string softmax_ = (folder_ / "softmax.yaml").string();
  Context context_{Device{DeviceType::cpu}, {.threads = 1}};
  CompareOptions options_;
  bool finished_ = false;
  int runs_ = 0;
};

TEST_F(CompareTest, LossesAndRecallsAreThoseOfTraining) {
  options_.seeds = 2;
  const Comparison comparison = measure({lightning_, softmax_});
  EXPECT_TRUE(finished_);
  ASSERT_THAT(comparison.models, SizeIs(2));
  const std::vector<std::string> paths = {lightning_, softmax_};
  for (size_t i = 0; i < 2; ++i) {
    const ComparedModel& model = comparison.models[i];
    ASSERT_THAT(model.losses, SizeIs(2));
    ASSERT_THAT(model.recalls, SizeIs(2));
    for (size_t seed = 0; seed < 2; ++seed) {
      const std::string chosen = "seed=" + std::to_string(7 + seed);
      EXPECT_EQ(model.losses[seed], train_alone(paths[i], {"trainer.steps=6", chosen}).loss);
      std::vector<std::string> recall = recall_overrides(3);
      recall.push_back(chosen);
      EXPECT_EQ(model.recalls[seed], train_alone(paths[i], recall).accuracy);
    }
  }
  EXPECT_NE(comparison.models[0].losses, comparison.models[1].losses);
}

TEST_F(CompareTest, TheSameBitsAtARepeat) {
  const ComparedModel first = measure({softmax_}).models.at(0), second = measure({softmax_}).models.at(0);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.recalls, second.recalls);
  EXPECT_EQ(first.peak_bytes, second.peak_bytes);
}

TEST_F(CompareTest, TheStateOfARecurrenceDoesNotGrow) {
  options_.recall_steps = 0;
  const Comparison comparison = measure({lightning_, softmax_});
  const ComparedModel &lightning = comparison.models.at(0), &softmax = comparison.models.at(1);
  EXPECT_THAT(lightning.recalls, SizeIs(0));
  ASSERT_THAT(lightning.generation, SizeIs(2));
  EXPECT_GT(lightning.generation[0].state_bytes, 0u);
  EXPECT_EQ(lightning.generation[0].state_bytes, lightning.generation[1].state_bytes);
  // Two layers hold keys and values of 16 float32 a token, and a position.
  EXPECT_EQ(softmax.generation[0].state_bytes, size_t{2} * (8 * 2 * 16 + 1) * 4);
  EXPECT_EQ(softmax.generation[1].state_bytes, size_t{2} * (40 * 2 * 16 + 1) * 4);
}

TEST_F(CompareTest, ASpeedIsOfAsManyTokensAsAStepHas) {
  options_.recall_steps = 0;
  options_.lengths = {8, 16, 100};
  const ComparedModel model = measure({lightning_}).models.at(0);
  ASSERT_THAT(model.training, SizeIs(3));
  const int64_t batch_sizes[] = {8, 4, 1};
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(model.training[i].batch_size, batch_sizes[i]);
}

TEST_F(CompareTest, TextJsonAndChartHoldEveryModel) {
  options_.seeds = 2;
  const Comparison comparison = measure({lightning_, softmax_});
  const std::string text = to_text(comparison), svg = to_svg(comparison);
  EXPECT_THAT(text, AllOf(StartsWith("| model "), HasSubstr(" nats/token |"), HasSubstr(" recall % |"),
                          HasSubstr(" train 16 "), HasSubstr(" generate 40 "), HasSubstr(" state 40 "),
                          HasSubstr(" ± "), HasSubstr("mean and standard deviation of 2 seeds")));
  EXPECT_THAT(svg, AllOf(StartsWith("<svg "), EndsWith("</svg>\n")));
  const nlohmann::json json = nlohmann::json::parse(to_json(comparison));
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["seed"], 7);
  EXPECT_EQ(json["seeds"], 2);
  EXPECT_EQ(json["steps"], 6);
  EXPECT_EQ(json["step_tokens"], 64);
  EXPECT_EQ(json["recall_steps"], 3);
  ASSERT_THAT(json["models"], SizeIs(2));
  for (size_t i = 0; i < 2; ++i) {
    const ComparedModel& model = comparison.models[i];
    const nlohmann::json& shown = json["models"][i];
    EXPECT_THAT(text, HasSubstr("| " + model.name + " "));
    ASSERT_THAT(model.losses, SizeIs(2));
    const double deviation = std::abs(model.losses[0] - model.losses[1]) / std::sqrt(2.0);
    EXPECT_THAT(text, HasSubstr(fmt::format(" {:.4f} ± {:.4f} ", (model.losses[0] + model.losses[1]) / 2, deviation)));
    EXPECT_THAT(svg, HasSubstr(">" + model.name + ": "));
    EXPECT_EQ(shown["name"], model.name);
    EXPECT_EQ(shown["parameters"], model.parameters);
    EXPECT_EQ(shown["validation_loss"].get<std::vector<double>>(), model.losses);
    EXPECT_EQ(shown["recall"].get<std::vector<double>>(), model.recalls);
    EXPECT_EQ(shown["peak_bytes"], model.peak_bytes);
    ASSERT_THAT(shown["training"], SizeIs(2));
    ASSERT_THAT(shown["generation"], SizeIs(2));
    for (size_t j = 0; j < 2; ++j) {
      EXPECT_EQ(shown["training"][j]["length"], model.training[j].length);
      EXPECT_EQ(shown["training"][j]["tokens_per_second"], model.training[j].tokens_per_second);
      EXPECT_EQ(shown["generation"][j]["context"], model.generation[j].context);
      EXPECT_EQ(shown["generation"][j]["tokens_per_second"], model.generation[j].tokens_per_second);
      EXPECT_EQ(shown["generation"][j]["state_bytes"], model.generation[j].state_bytes);
    }
  }
}

// Names are those of files, which may hold anything.
TEST(CompareReportTest, NamesBreakNoTable) {
  Comparison comparison;
  ComparedModel& model = comparison.models.emplace_back();
  model.name = "a|b\nc";
  model.losses = {1.0};
  EXPECT_THAT(to_text(comparison), HasSubstr("\n| a\\|b c |"));
}

TEST_F(CompareTest, RefusesModelsThatWouldSeeOtherTokens) {
  const std::string other = file("other.yaml", "base: lightning.yaml\ndata: {length: 5}\n");
  EXPECT_THAT(refusal({lightning_, other}),
              AllOf(StartsWith(other + ":2:"), HasSubstr("data.length: found 5 in " + other + ", expected 6 as in " +
                                                         lightning_ + ": all models are trained on the same tokens")));
  EXPECT_THAT(refusal({lightning_, file("seed.yaml", "base: lightning.yaml\nseed: 8\n")}), HasSubstr("seed: found 8"));
  EXPECT_THAT(refusal({lightning_, file("batch.yaml", "base: lightning.yaml\ntrainer: {batch_size: 5}\n")}),
              HasSubstr("trainer.batch_size: found 5"));
  EXPECT_THAT(refusal({lightning_, file("type.yaml", "base: lightning.yaml\ndata: {type: mqar, num_pairs: 2}\n")}),
              HasSubstr("data.type: found mqar"));
  EXPECT_THAT(refusal({lightning_, softmax_, lightning_}), HasSubstr(lightning_ + " is given twice"));
  options_.overrides = {"data.length=5"};
  EXPECT_THAT(refusal({lightning_, other}), HasSubstr("nothing was refused"));
}

TEST_F(CompareTest, NamesAreThoseOfTheFilesWhereTheseDiffer) {
  const std::string twin = file("folder/softmax.yaml", "base: ../softmax.yaml\n");
  std::vector<std::string> names;
  for (const CompareSubject& subject : load_subjects(std::vector{lightning_, softmax_, twin}, options_)) {
    names.push_back(subject.name);
  }
  EXPECT_THAT(names, ElementsAre("lightning", softmax_, twin));
}

TEST_F(CompareTest, WhenItIsStoppedTheModelsBeforeAreKept) {
  size_t reported = 0;
  options_.recall_steps = 0;
  options_.stop_requested = [&] { return reported == 1; };
  const auto subjects = load_subjects(std::vector{lightning_, softmax_}, options_);
  EXPECT_FALSE(compare(context_, subjects, options_, [&](const Comparison& all) { reported = all.models.size(); }));
  EXPECT_EQ(reported, 1u);
}

TEST_F(CompareTest, AStopIsLookedForWhileAContextIsRead) {
  options_.recall_steps = 0;
  const auto asked = [&](int64_t context) {
    int count = 0;
    options_.contexts = {context};
    options_.stop_requested = [&] { return ++count < 0; };
    measure({lightning_});
    return count;
  };
  EXPECT_EQ(asked(4 * 1024 + 1), asked(1024) + 4);
}

// A learning rate that no model survives.
TEST_F(CompareTest, AFailureNamesTheModel) {
  options_.overrides = {"optimizer.lr=1.0e30", "optimizer.clip_norm=1.0e30", "schedule.warmup_steps=0"};
  try {
    measure({softmax_});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), StartsWith("softmax: "));
  }
}

}  // namespace
}  // namespace heddle
