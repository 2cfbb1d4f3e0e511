// Rows of training steps. No test looks at a time.
#include "tools/benchmark_training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "tools/benchmark_report.h"
#include "trainers/dry_run.h"
#include "trainers/step_memory.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BenchmarkTrainingTest : public ::testing::Test {
 protected:
  BenchmarkTrainingTest() {
    write_file(folder_ / "tiny.yaml", testing::tiny_config());
    write_file(folder_ / "wide.yaml", "base: tiny.yaml\ntrainer: {batch_size: 2, accumulate: 3, dtype: bfloat16}\n");
    write_file(folder_ / "gpu.yaml", "base: tiny.yaml\nmodel: {layers: 1}\n");
    options_.warmup_ms = options_.repeat_ms = 0.1;
  }

  BenchmarkSuite load(const std::string& text) const {
    write_file(folder_ / "suite.yaml", text);
    return load_benchmark_suite((folder_ / "suite.yaml").string());
  }
  // The rows of the command, whose errors come before them.
  std::vector<BenchmarkRow> rows(const BenchmarkSuite& suite, Device device = {}) {
    check_choice(std::span(&suite, 1), options_, device);
    check_fit(std::span(&suite, 1), options_, device);
    Context context(device, {.threads = 1});
    std::vector<BenchmarkRow> rows;
    finished_ = run_benchmark(context, suite, options_, 0.0, [&](const BenchmarkRow& row) { rows.push_back(row); });
    return rows;
  }
  std::string refusal(const std::string& text, Device device = {}) {
    try {
      rows(load(text), device);
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  }
  static std::vector<std::string> names(const std::vector<BenchmarkRow>& rows) {
    std::vector<std::string> names;
    for (const BenchmarkRow& row : rows) names.push_back(row.config + " " + std::string(name(row.quantity)));
    return names;
  }

  testing::TempFolder folder_;
  const std::string suite_text_ = "training:\n  cpu: [wide.yaml, tiny.yaml]\n  cuda: [gpu.yaml, tiny.yaml]\n";
  BenchmarkOptions options_;
  bool finished_ = false;
};

TEST_F(BenchmarkTrainingTest, RowsAreThoseOfSteps) {
  const std::vector<BenchmarkRow> measured = rows(load(suite_text_));
  EXPECT_TRUE(finished_);
  ASSERT_THAT(names(measured), ElementsAre("wide speed", "wide memory", "tiny speed", "tiny memory"));
  for (const BenchmarkRow& row : measured) {
    const TrainConfig config = load_train_config((folder_ / (row.config + ".yaml")).string());
    EXPECT_EQ(row.suite, "suite");
    EXPECT_EQ(row.pass, BenchmarkPass::step);
    EXPECT_EQ(row.n, row.config == "wide" ? 2 * 3 * 16 : 4 * 16);
    EXPECT_EQ(row.dtype, config.trainer.dtype);
    EXPECT_EQ(row.device, "cpu");
    EXPECT_EQ(row.bytes, 0);
    if (row.quantity == BenchmarkQuantity::memory) {
      EXPECT_DOUBLE_EQ(row.value * (1 << 20), static_cast<double>(step_peak(config)->allocated));
      EXPECT_EQ(row.tokens_per_second, 0.0);
      EXPECT_EQ(row.gemm_fraction, 0.0);
      continue;
    }
    EXPECT_GT(row.value, 0.0);
    EXPECT_NEAR(row.tokens_per_second, static_cast<double>(row.n) / (row.value * 1e-3), 1e-6 * row.tokens_per_second);
    const double operations = dry_run(config).operations_per_step;
    EXPECT_NEAR(row.tflops, operations / (row.value * 1e9), 1e-6 * row.tflops);
    EXPECT_GT(row.gemm_fraction, 0.0);
  }
}

// The bytes are the same on every device, and are counted without one.
TEST_F(BenchmarkTrainingTest, MetaCountsAllConfigs) {
  const std::vector<BenchmarkRow> measured = rows(load(suite_text_), {DeviceType::meta});
  EXPECT_THAT(names(measured), ElementsAre("wide memory", "tiny memory", "gpu memory"));
  options_.configs = {"gpu"};
  options_.quantities = {BenchmarkQuantity::memory};
  EXPECT_EQ(rows(load(suite_text_), {}).at(0).value, measured[2].value) << "--config takes any of them";
}

TEST_F(BenchmarkTrainingTest, TablesTellWhatAStepTakes) {
  options_.configs = {"tiny"};
  const std::vector<BenchmarkRow> measured = rows(load(suite_text_));
  ASSERT_EQ(measured.size(), 2u);
  EXPECT_THAT(to_csv(measured), AllOf(HasSubstr(",tflops,tokens_per_second,gemm_fraction\n"),
                                      HasSubstr("\nsuite,tiny,step,speed,64,float32,cpu,")));
  EXPECT_THAT(to_json(measured), AllOf(HasSubstr("\"tokens_per_second\": "), HasSubstr("\"gemm_fraction\": 0.0")));
  EXPECT_THAT(table_header(), AllOf(HasSubstr(" tokens/s "), HasSubstr(" GEMM ")));
  EXPECT_LT(table_line(measured[1], nullptr).find_last_not_of(' '), table_header().find("GB/s"));
  EXPECT_GE(table_line(measured[0], nullptr).find_last_not_of(' '), table_header().find("GEMM") - 2);
}

TEST_F(BenchmarkTrainingTest, StopsBetweenRows) {
  int asked = 0;
  options_.stop_requested = [&] { return ++asked == 3; };
  EXPECT_THAT(names(rows(load(suite_text_))), ElementsAre("wide speed", "wide memory"));
  EXPECT_FALSE(finished_);
}

TEST_F(BenchmarkTrainingTest, ChoicesThatChooseNothingAreRefused) {
  options_.passes = {BenchmarkPass::fwd};
  EXPECT_EQ(refusal(suite_text_), "suite has no such pass");
  options_ = {};
  options_.sizes = {64};
  EXPECT_EQ(refusal(suite_text_), "found size n = 64 for suite, expected none: steps have the tokens of their configs");
  options_ = {};
  options_.configs = {"tinny"};
  EXPECT_EQ(refusal(suite_text_),
            "found no config 'tinny' in suite, expected one of wide, tiny, gpu; did you mean 'tiny'?");
  options_ = {};
  EXPECT_EQ(refusal("training: {cuda: [gpu.yaml]}\n"),
            "suite lists no config for device cpu, expected --config with one of gpu");
}

// A pass of operators leaves steps out, and the pass of a step leaves operators out.
TEST_F(BenchmarkTrainingTest, StandsBesideOperators) {
  const std::vector<BenchmarkSuite> suites = {
      load(suite_text_), load("suite: operators\noperator: srms_norm\nn: [8]\nconfigs:\n"
                              "  a: {inputs: {x: [4, n]}, moved: {fwd: [x, y], bwd: [x, d_y, d_x]}}\n")};
  options_.quantities = {BenchmarkQuantity::memory};
  const auto count_rows = [&] {
    check_choice(suites, options_, {DeviceType::meta});
    Context context(Device{DeviceType::meta});
    std::vector<size_t> counts;
    for (const BenchmarkSuite& suite : suites) {
      size_t& count = counts.emplace_back();
      run_benchmark(context, suite, options_, 0.0, [&](const BenchmarkRow&) { ++count; });
    }
    return counts;
  };
  EXPECT_THAT(count_rows(), ElementsAre(3, 3));
  options_.passes = {BenchmarkPass::fwd};
  EXPECT_THAT(count_rows(), ElementsAre(0, 1));
  options_.passes = {BenchmarkPass::step};
  EXPECT_THAT(count_rows(), ElementsAre(3, 0));
  options_ = {};
  options_.quantities = {BenchmarkQuantity::memory};
  options_.sizes = {16};
  EXPECT_THAT(count_rows(), ElementsAre(0, 3));
}

TEST_F(BenchmarkTrainingTest, FaultsOfTheSuiteAreToldWithTheirPlace) {
  const std::string path = (folder_ / "suite.yaml").string();
  EXPECT_THAT(refusal("training: {cpu: [tiny.yaml]}\nconfigs: {}\n"),
              StartsWith(path + ":2:10: configs: found a map, expected no such key: the rows of a suite are "));
  EXPECT_THAT(refusal("suite: a\n"), HasSubstr("missing key 'configs'"));
  EXPECT_THAT(refusal("training: {gpu: [tiny.yaml]}\n"), HasSubstr("unknown key 'gpu' in training"));
  EXPECT_THAT(
      refusal("training: {cpu: [none.yaml]}\n"),
      AllOf(StartsWith(path + ":1:"), HasSubstr("training.cpu: found no file " + (folder_ / "none.yaml").string())));
  EXPECT_THAT(refusal("training: {cpu: [tiny.yaml, ./tiny.yaml]}\n"), HasSubstr("./tiny.yaml is given twice"));
  std::filesystem::create_directories(folder_ / "more");
  write_file(folder_ / "more" / "tiny.yaml", testing::tiny_config());
  EXPECT_THAT(refusal("training: {cpu: [tiny.yaml, more/tiny.yaml]}\n"),
              HasSubstr("expected files of different names"));
}

// All of them are read before anything is measured, also those of other devices.
TEST_F(BenchmarkTrainingTest, FaultsOfAConfigAreToldWithItsPlace) {
  const std::string bad = (folder_ / "bad.yaml").string();
  write_file(bad, "base: tiny.yaml\ntrainer: {batchsize: 3}\n");
  EXPECT_THAT(refusal("training: {cpu: [tiny.yaml], cuda: [bad.yaml]}\n"),
              AllOf(StartsWith(bad + ":2:"), HasSubstr("unknown key 'batchsize' in trainer")));
  write_file(bad, "base: tiny.yaml\ntrainer: {steps: 1, batch_size: 1000000000000000}\nschedule: {warmup_steps: 0}\n");
  EXPECT_THAT(refusal("training: {cpu: [tiny.yaml, bad.yaml]}\n"),
              AllOf(StartsWith(bad + ":"), HasSubstr("a step takes more bytes than can be counted")));
  // What only the measurement finds.
  const BenchmarkSuite suite = load(suite_text_);
  Context small(Device{}, {.threads = 1, .allocator = {.limit_bytes = 65536}});
  try {
    run_training_benchmark(small, suite, options_, [](const BenchmarkRow&) {});
    ADD_FAILURE() << "nothing was refused";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), StartsWith("wide (" + (folder_ / "wide.yaml").string() + "): "));
  }
}

// Every file that a suite reads is known to the command, which must not write over it.
TEST_F(BenchmarkTrainingTest, KnowsItsFiles) {
  const BenchmarkSuite suite = load("training: {cpu: [wide.yaml]}\n");
  ASSERT_EQ(suite.files.size(), 3u);
  EXPECT_EQ(suite.files[0].filename(), "suite.yaml");
  EXPECT_EQ(suite.files[1].filename(), "wide.yaml");
  EXPECT_EQ(suite.files[2].filename(), "tiny.yaml");
}

TEST(BenchmarkTrainingSuite, IsThereAndCanBeBuilt) {
  const BenchmarkSuite suite = load_benchmark_suite("training");
  const BenchmarkOptions options;
  check_fit(std::span(&suite, 1), options, {DeviceType::meta});
  EXPECT_EQ(chosen_training(suite, options, {DeviceType::cpu}).size(), 1u);
  EXPECT_EQ(chosen_training(suite, options, {DeviceType::cuda, 1}).size(), 6u);
}

}  // namespace
}  // namespace heddle
