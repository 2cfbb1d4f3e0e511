#include "tools/benchmark.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_error.h"
#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "kernels/common/activation.h"
#include "tests/temp_folder.h"
#include "tools/benchmark_report.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kSuites = std::string(HEDDLE_SOURCE_DIR) + "/configs/bench/";

std::vector<BenchmarkRow> memory_rows(Device device, const BenchmarkSuite& suite, std::vector<int64_t> sizes = {}) {
  Context context(device, {.threads = 1});
  BenchmarkOptions options;
  options.sizes = std::move(sizes);
  options.quantities = {BenchmarkQuantity::memory};
  std::vector<BenchmarkRow> rows;
  run_benchmark(context, suite, options, 0.0, [&](const BenchmarkRow& row) { rows.push_back(row); });
  return rows;
}

TEST(BenchmarkSuiteTest, ExtentsAreSumsOfProductsAndQuotients) {
  EXPECT_EQ(evaluate_extent("2048", 4), 2048);
  EXPECT_EQ(evaluate_extent("n", 4), 4);
  EXPECT_EQ(evaluate_extent("n*n*n+10", 4), 74);
  EXPECT_EQ(evaluate_extent("n*n*0", int64_t{1} << 62), 0);
  EXPECT_EQ(evaluate_extent("64/n*3+n/2", 4), 50);
  for (const char* bad : {"m", "-4", "", "n*", "1e3", "n/3", "n/0", "/n", "8/n/2"})
    EXPECT_THROW(evaluate_extent(bad, 4), Error) << bad;
  for (const char* large : {"n*4", "n*2", "n+n", "n*n*n"}) {
    EXPECT_THROW(evaluate_extent(large, int64_t{1} << 62), Error) << large;
  }
}

// A suite belongs to the program, not to the folder it is started in.
TEST(BenchmarkSuiteTest, IsFoundFromAnyFolder) {
  const testing::TempFolder folder;
  const std::filesystem::path here = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const BenchmarkSuite suite = load_benchmark_suite("srms_norm");
  EXPECT_EQ(suite.configs.size(), 6u);
  EXPECT_FALSE(read_published(suite.published).empty());
  EXPECT_EQ(load_benchmark_suite("rms_norm").configs.front().name, "4x512x4096") << "the suite, not the operator";
  std::filesystem::create_directories("configs/bench");
  write_file("configs/bench/srms_norm.yaml",
             "operator: srms_norm\nn: [2]\nconfigs:\n  own: {inputs: {x: [n, 4]}, moved: {fwd: [x], bwd: [d_x]}}\n");
  EXPECT_EQ(load_benchmark_suite("srms_norm").configs.front().name, "own") << "the current folder goes first";
  std::filesystem::current_path(here);
}

// Published figures lie beside the folder that a link leads to, not beside the link.
TEST(BenchmarkSuiteTest, IsReadThroughLinks) {
  const testing::TempFolder folder;
  const auto link = folder / "configs";
  std::filesystem::create_directory_symlink(std::string(HEDDLE_SOURCE_DIR) + "/configs", link);
  EXPECT_FALSE(read_published(load_benchmark_suite(link / "bench/rms_norm.yaml").published).empty());
  write_file(folder / "mine.yml", "configs: {}\n");
  EXPECT_EQ(load_benchmark_suite(folder / "mine.yml").name, "mine");
}

TEST(BenchmarkSuiteTest, NamesOfInputsThatAreNotThereAreRefused) {
  const testing::TempFolder folder;
  const auto refusal = [&](const std::string& more) -> std::string {
    write_file(folder / "suite.yaml",
               "operator: embedding\nconfigs:\n  a:\n    inputs: {tokens: [n], weight: [5, 4]}\n"
               "    moved: {fwd: [y], bwd: [d_y]}\n" +
                   more);
    try {
      load_benchmark_suite((folder / "suite.yaml").string());
    } catch (const ConfigError& error) {
      return error.message();
    }
    return "no error";
  };
  EXPECT_EQ(refusal("    n: [3]\n    index_bounds: {tokens: 5}\n    input_dtypes: {weight: float32}\n"), "no error");
  EXPECT_EQ(
      refusal("    n: [3]\n    index_bounds: {token: 5}\n"),
      "configs.a.index_bounds.token: found no such input, expected one of tokens, weight; did you mean 'tokens'?");
  EXPECT_THAT(refusal("    n: [3]\n    input_dtypes: {bias: float32}\n"), HasSubstr("found no such input"));
  EXPECT_THAT(refusal("    n: [0]\n"), HasSubstr("configs.a.n.0: found '0', expected an integer >= 1"));
}

TEST(BenchmarkSuiteTest, OptionsHoldSizes) {
  const BenchmarkSuite suite = load_benchmark_suite(kSuites + "lrpe_cosine.yaml");
  const auto shape = [&](size_t config, int64_t n) {
    return suite.configs[config].options_at(n).require<std::vector<int64_t>>("shape");
  };
  ASSERT_EQ(suite.configs[3].name, "2d_l10");
  EXPECT_THAT(shape(3, 16), ElementsAre(16, 16));
  EXPECT_THAT(shape(3, 32), ElementsAre(32, 32));
  EXPECT_EQ(suite.configs[3].options_at(16).require<int64_t>("extra_tokens"), 10);
  EXPECT_EQ(suite.configs[3].options_at(16).require<std::string>("layout"),
            "bhnd");  // text stays, whatever its letters
}

// A suite says which passes make sense, and how many operations they take.
TEST(BenchmarkSuiteTest, PassesAndOperations) {
  const testing::TempFolder folder;
  const auto load = [&](const std::string& more) {
    write_file(folder / "suite.yaml", "operator: srms_norm\nn: [4]\nconfigs:\n  a:\n    inputs: {x: [n, 64]}\n" + more);
    return load_benchmark_suite((folder / "suite.yaml").string());
  };
  const BenchmarkSuite suite = load("    moved: {fwd: [x, y]}\n    passes: [fwd]\n    flops: {fwd: 3*n*64}\n");
  Context context(Device{}, {.threads = 1});
  BenchmarkOptions options;
  options.warmup_ms = options.repeat_ms = 0.1;
  options.quantities = {BenchmarkQuantity::speed};
  std::vector<BenchmarkRow> rows;
  run_benchmark(context, suite, options, 0.0, [&](const BenchmarkRow& row) { rows.push_back(row); });
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].pass, BenchmarkPass::fwd);
  EXPECT_DOUBLE_EQ(rows[0].tflops, 3 * 4 * 64 / (rows[0].value * 1e9));
  options.passes = {BenchmarkPass::bwd};
  EXPECT_THROW(check_choice(std::span(&suite, 1), options, Device{}), UsageError);
  EXPECT_THROW(load("    moved: {fwd: [x, y]}\n"), ConfigError) << "bwd is missing";
  EXPECT_THROW(load("    moved: {fwd: [x], bwd: [d_x]}\n    passes: [forward]\n"), ConfigError);
  EXPECT_THROW(load("    moved: {fwd: [x], bwd: [d_x]}\n    flops: {fwd: m}\n"), ConfigError);
  EXPECT_THROW(load("    moved: {fwd: [x], bwd: [d_x]}\n    passes: [fwd]\n"), ConfigError) << "nobody reads bwd";
}

// Every suite can be measured: its inputs are those of the operator, at all its sizes.
TEST(BenchmarkSuiteTest, SuitesOfLossesAndOfOneTokenAreMeasured) {
  for (const char* name : {"cross_entropy", "decode", "linear_attention", "softmax_attention"}) {
    const BenchmarkSuite suite = load_benchmark_suite(kSuites + name + ".yaml");
    size_t expected = 0;
    for (const BenchmarkConfig& config : suite.configs) expected += config.sizes.size() * config.passes.size();
    const std::vector<BenchmarkRow> rows = memory_rows({DeviceType::meta}, suite);
    EXPECT_EQ(rows.size(), expected) << name;
    for (const BenchmarkRow& row : rows) EXPECT_GT(row.bytes, 0) << name << " " << row.config;
  }
}

TEST(BenchmarkSuiteTest, MistakesAreConfigErrors) {
  try {
    load_benchmark_suite(kSuites + "no_such_suite.yaml");
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("no_such_suite.yaml"));
  }
}

// An operator without a suite is measured on the large cases of its own.
TEST(BenchmarkSuiteTest, AnOperatorBringsItsCases) {
  const BenchmarkSuite suite = load_benchmark_suite("glu_product");
  ASSERT_EQ(suite.configs.size(), 2 * std::size(kernels::kElementwiseActivations));
  const std::vector<BenchmarkRow> rows = memory_rows({DeviceType::meta}, suite);
  ASSERT_EQ(rows.size(), 3 * suite.configs.size());
  // (5, 1100) in bfloat16, each tensor rounded up to 512 bytes.
  const double tensor = 11264.0 / (1 << 20);
  EXPECT_EQ(rows[0].n, 5500);
  EXPECT_DOUBLE_EQ(rows[0].value, 3 * tensor);
  EXPECT_EQ(rows[0].bytes, 3 * 11000);
  EXPECT_DOUBLE_EQ(rows[2].value, 5 * tensor + tensor);  // a, b, y, d_y, d_a, d_b
  EXPECT_EQ(rows[2].bytes, 5 * 11000);
  for (const char* name : {"embedding", "linear_cross_entropy", "log_sigmoid"}) {
    const BenchmarkSuite cases = load_benchmark_suite(name);
    EXPECT_EQ(memory_rows({DeviceType::cpu}, cases).size(), 3 * cases.configs.size()) << name;
  }
  EXPECT_THROW(load_benchmark_suite("glu_prodct"), UsageError);
  // The shapes of a case are what they are: a size chooses among them.
  EXPECT_TRUE(memory_rows({DeviceType::meta}, suite, {64}).empty());
  EXPECT_EQ(memory_rows({DeviceType::meta}, suite, {64, 5500}).size(), rows.size() / 2);
}

TEST(BenchmarkTest, ChoicesThatChooseNothingAreRefused) {
  const std::vector<BenchmarkSuite> suites = {load_benchmark_suite(kSuites + "srms_norm.yaml"),
                                              load_benchmark_suite("glu_product")};
  const auto refusal = [&](const BenchmarkOptions& options, Device device = {}) -> std::string {
    try {
      check_choice(suites, options, device);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  BenchmarkOptions options;
  EXPECT_EQ(refusal(options), "");
  EXPECT_EQ(refusal(options, {DeviceType::meta}), "");
  options.sizes = {7};
  EXPECT_EQ(refusal(options), "") << "srms_norm has it";
  options.configs = {suites[1].configs[0].name};
  EXPECT_THAT(refusal(options), HasSubstr("found no case of size n = 7"));
  options.sizes = {int64_t{1} << 62};
  options.configs = {"residual"};
  EXPECT_THAT(refusal(options), HasSubstr("residual at n = 4611686018427387904: shape "));
  options = {};
  options.quantities = {BenchmarkQuantity::speed};
  EXPECT_THAT(refusal(options, {DeviceType::meta}), HasSubstr("nothing can be timed on device meta"));
}

TEST(BenchmarkTest, StopsBetweenRows) {
  Context context(Device{DeviceType::meta});
  const BenchmarkSuite suite = load_benchmark_suite(kSuites + "srms_norm.yaml");
  BenchmarkOptions options;
  int rows = 0;
  options.stop_requested = [&] { return rows == 2; };
  const auto count = [&](const BenchmarkRow&) { ++rows; };
  EXPECT_FALSE(run_benchmark(context, suite, options, 0.0, count));
  EXPECT_EQ(rows, 2);
  options.stop_requested = [] { return false; };
  options.sizes = {8};
  EXPECT_TRUE(run_benchmark(context, suite, options, 0.0, count));
}

// The sum of what lives at the peak, in bytes: forward x, y and one statistic a row; backward d_y and d_x as well.
TEST(BenchmarkTest, MemoryRowsAreTheSumOfTheTensors) {
  BenchmarkSuite suite = load_benchmark_suite(kSuites + "srms_norm.yaml");
  const double tensor = 4.0 * 8 * 2048 * 2 / (1 << 20), statistics = 512.0 / (1 << 20);
  int checked = 0;
  for (const BenchmarkRow& row : memory_rows({DeviceType::meta}, suite, {8})) {
    if (row.config != "plain") continue;
    EXPECT_DOUBLE_EQ(row.value, statistics + tensor * (row.pass == BenchmarkPass::fwd ? 2 : 4)) << name(row.pass);
    ++checked;
  }
  EXPECT_EQ(checked, 3);
}

// A suite, and how many of its rows have a published figure: configs times sizes, forward and backward.
struct PublishedSuite {
  const char* name;
  int rows;
};
void PrintTo(const PublishedSuite& suite, std::ostream* out) { *out << suite.name; }

class BenchmarkMemory : public ::testing::TestWithParam<PublishedSuite> {
 protected:
  const BenchmarkSuite suite_ = load_benchmark_suite(kSuites + GetParam().name + ".yaml");
};

TEST_P(BenchmarkMemory, OnMetaEqualsTheCpu) {
  const auto meta = memory_rows({DeviceType::meta}, suite_, {3}), cpu = memory_rows({DeviceType::cpu}, suite_, {3});
  ASSERT_EQ(meta.size(), cpu.size());
  for (size_t i = 0; i < meta.size(); ++i) EXPECT_EQ(meta[i].value, cpu[i].value) << meta[i].config;
}

TEST_P(BenchmarkMemory, IsAtMostTheSmallestPublished) {
  const auto published = read_published(suite_.published);
  int compared = 0;
  for (const BenchmarkRow& row : memory_rows({DeviceType::meta}, suite_)) {
    const PublishedFigure* best = best_published(published, row);
    if (best == nullptr) continue;
    EXPECT_LE(row.value, best->value + 5e-7) << table_line(row, best);  // published with six digits
    ++compared;
  }
  EXPECT_EQ(compared, GetParam().rows);
}

INSTANTIATE_TEST_SUITE_P(All, BenchmarkMemory,
                         ::testing::Values(PublishedSuite{"srms_norm", 2 * 6 * 2},
                                           PublishedSuite{"norm_gate", 2 * 6 * 2},
                                           PublishedSuite{"lrpe_rotate", 4 * 8 * 2},
                                           PublishedSuite{"lrpe_cosine", (2 * 8 + 4 * 4) * 2}),
                         [](const auto& info) { return info.param.name; });

TEST(BenchmarkMemoryGpu, OnMetaEqualsTheGpu) {
  if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  const BenchmarkSuite suite = load_benchmark_suite(kSuites + "srms_norm.yaml");
  const auto meta = memory_rows({DeviceType::meta}, suite), gpu = memory_rows({DeviceType::cuda}, suite);
  ASSERT_EQ(meta.size(), gpu.size());
  for (size_t i = 0; i < meta.size(); ++i) {
    EXPECT_EQ(meta[i].value, gpu[i].value) << meta[i].config << " n " << meta[i].n;
  }
}

TEST(BenchmarkReportTest, NansAreShownWithoutTheirSign) {
  BenchmarkRow row;
  row.suite = "suite";
  row.config = "config";
  row.device = "cpu";
  row.value = row.gbps = row.copy_fraction = row.tflops = std::copysign(std::nan(""), -1.0);
  row.tokens_per_second = row.gemm_fraction = row.value;
  const std::string line = table_line(row, nullptr), csv = to_csv(std::span(&row, 1));
  EXPECT_THAT(line, HasSubstr(" nan "));
  EXPECT_THAT(line, Not(HasSubstr("-nan")));
  EXPECT_THAT(csv, HasSubstr(",cpu,nan,"));
  EXPECT_THAT(csv, EndsWith(",nan,nan,nan,nan,nan\n"));
  EXPECT_THAT(to_json(std::span(&row, 1)), HasSubstr("\"value\": null,"));  // JSON has no NaN
}

// As RFC 4180 says: the names of cases hold commas.
TEST(BenchmarkReportTest, CsvQuotesNames) {
  BenchmarkRow row;
  row.suite = "a \"b\"";
  row.config = "glu {act: silu} (5, 11)";
  EXPECT_THAT(to_csv(std::span(&row, 1)), HasSubstr("\n\"a \"\"b\"\"\",\"glu {act: silu} (5, 11)\",fwd,speed,"));
  row.suite = row.config = "plain";
  EXPECT_THAT(to_csv(std::span(&row, 1)), HasSubstr("\nplain,plain,fwd,speed,"));
}

TEST(BenchmarkTest, SpeedRowsOnTheCpuHaveTimesAndRates) {
  const BenchmarkSuite suite = load_benchmark_suite(kSuites + "srms_norm.yaml");
  Context context(Device{}, {.threads = 1});
  BenchmarkOptions options;
  options.sizes = {2};
  options.configs = {"residual_weight"};
  options.quantities = {BenchmarkQuantity::speed};
  options.warmup_ms = options.repeat_ms = 1.0;
  int rows = 0;
  run_benchmark(context, suite, options, 1e10, [&](const BenchmarkRow& row) {
    ++rows;
    EXPECT_GT(row.value, 0.0);
    const int64_t tensor = 4 * 2 * 2048 * 2, weight = 2048 * 2;
    const int64_t expected = row.pass == BenchmarkPass::fwd         ? 3 * tensor + weight
                             : row.pass == BenchmarkPass::bwd_first ? 5 * tensor + 2 * weight
                                                                    : 7 * tensor + 3 * weight;
    EXPECT_EQ(row.bytes, expected) << name(row.pass);
    EXPECT_NEAR(row.copy_fraction, row.gbps * 0.1, 1e-9);
  });
  EXPECT_EQ(rows, 3);
}

}  // namespace
}  // namespace heddle
