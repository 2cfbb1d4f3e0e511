// What is wrong with a suite is found before anything is measured, and told with its place.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tools/benchmark.h"
#include "tools/benchmark_report.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BenchmarkFaultsTest : public ::testing::Test {
 protected:
  // What is said of a suite with a good config and then this one, on line 5.
  std::string fault(const std::string& config, const BenchmarkOptions& options = {}) const {
    return fault_of(
        "n: [8]\noperator: srms_norm\nconfigs:\n"
        "  good: {inputs: {x: [4, n]}, moved: {fwd: [x, y], bwd: [x, d_y, d_x]}}\n  bad: {" +
            config + "}\n",
        options);
  }
  std::string fault_of(const std::string& text, const BenchmarkOptions& options = {}) const {
    write_file(path_, text);
    try {
      const BenchmarkSuite suite = load_benchmark_suite(path_);
      if (!suite.published.empty()) read_published(suite.published);
      check_choice(std::span(&suite, 1), options, {DeviceType::meta});
      check_fit(std::span(&suite, 1), options, {DeviceType::meta});
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "none";
  }

  testing::TempFolder folder_;
  const std::string path_ = (folder_ / "suite.yaml").string();
  const std::string moved_ = ", moved: {fwd: [x, y], bwd: [x, d_y, d_x]}";
};

TEST_F(BenchmarkFaultsTest, NamesThatAreNotThere) {
  EXPECT_EQ(fault("inputs: {x: [4, n]}" + moved_), "none");
  EXPECT_THAT(fault("operator: srms_nrm, inputs: {x: [4, n]}" + moved_),
              AllOf(StartsWith(path_ + ":5:19: configs.bad.operator: found 'srms_nrm', expected one of "),
                    HasSubstr("did you mean 'srms_norm'?")));
  EXPECT_THAT(fault("inputs: {xx: [4, n]}" + moved_),
              AllOf(StartsWith(path_ + ":5:"), HasSubstr("configs.bad.inputs.xx: srms_norm has no such input")));
  EXPECT_THAT(fault("inputs: {x: [4, n]}, moved: {fwd: [x, yy], bwd: [x]}"),
              AllOf(StartsWith(path_ + ":5:"), HasSubstr("configs.bad.moved.fwd: found 'yy', expected one of x, y, r"),
                    HasSubstr("did you mean 'y'?")));
  EXPECT_THAT(fault("inputs: {x: [4, n]}, moved: {fwd: [x], bwd: [d_z]}"), HasSubstr("bad.moved.bwd: found 'd_z'"));
  EXPECT_THAT(fault("options: {epz: 1}, inputs: {x: [4, n]}" + moved_),
              AllOf(StartsWith(path_ + ":5:19: "), HasSubstr("unknown key 'epz' in configs.bad.options")));
  EXPECT_THAT(fault_of("n: [8]\nconfigs:\n  a: {inputs: {x: [n]}, moved: {fwd: [x], bwd: [x]}}\n"),
              HasSubstr(":3:3: configs.a: missing key 'operator'"));
}

TEST_F(BenchmarkFaultsTest, IndicesWithoutABound) {
  const std::string config =
      "operator: embedding, inputs: {tokens: [n], weight: [5, 4]}, moved: {fwd: [y], bwd: [d_y]}";
  EXPECT_THAT(fault(config), AllOf(StartsWith(path_ + ":5:3: "), HasSubstr("found no bound of tokens")));
  EXPECT_EQ(fault(config + ", index_bounds: {tokens: 5}"), "none");
}

// Numbers beyond the table, or beyond the classes, would be found by the kernel, in the middle of a measurement.
TEST_F(BenchmarkFaultsTest, MoreIndicesThanThereAreRows) {
  const std::string moved = ", moved: {fwd: [y], bwd: [d_y]}";
  EXPECT_THAT(fault("operator: embedding, inputs: {tokens: [n], weight: [5, 4]}, index_bounds: {tokens: 6}" + moved),
              AllOf(StartsWith(path_ + ":5:"), HasSubstr("configs.bad.index_bounds.tokens: found '6', expected at most "
                                                         "5: weight has shape (5, 4) at n = 8")));
  const std::string by_size = "operator: embedding, inputs: {tokens: [4], weight: [n, 4]}, index_bounds: {tokens: 8}";
  EXPECT_EQ(fault(by_size + moved), "none");
  BenchmarkOptions options;
  options.sizes = {7};
  EXPECT_THAT(fault(by_size + moved, options), HasSubstr("found '8', expected at most 7"));
  const std::string loss = "operator: cross_entropy, inputs: {logits: [n, 3], targets: [n]}, index_bounds: {targets: ";
  EXPECT_EQ(fault(loss + "3}, moved: {fwd: [loss], bwd: [d_logits]}"), "none");
  EXPECT_THAT(fault(loss + "4}, moved: {fwd: [loss], bwd: [d_logits]}"),
              HasSubstr("index_bounds.targets: found '4', expected at most 3: logits has shape (8, 3)"));
}

// What only shows when the operator runs: shapes, outputs that these options do not have, options of one size.
TEST_F(BenchmarkFaultsTest, ConfigsThatDoNotFitTheirOperator) {
  const std::string shapes = "operator: rms_norm, inputs: {x: [4, n], weight: [8]}" + moved_;
  EXPECT_EQ(fault(shapes), "none");
  BenchmarkOptions options;
  options.sizes = {16};
  EXPECT_THAT(fault(shapes, options),
              AllOf(StartsWith(path_ + ":5:3: configs.bad: at n = 16: [rms_norm] weight has shape (8)")));
  EXPECT_THAT(fault("inputs: {x: [4, n]}, moved: {fwd: [x, r], bwd: [x]}"), HasSubstr("'r' in moved is neither"));
  // Nobody asks for what is not measured.
  options.configs = {"good"};
  EXPECT_EQ(fault(shapes, options), "none");
  options.configs.clear();
  options.passes = {BenchmarkPass::bwd};
  EXPECT_THAT(fault("inputs: {x: [4, n]}, moved: {fwd: [x, y], bwd: [d_r]}", options), HasSubstr("'d_r' in moved"));
  options.passes = {BenchmarkPass::fwd};
  EXPECT_EQ(fault("inputs: {x: [4, n]}, moved: {fwd: [x, y], bwd: [d_r]}", options), "none");
}

TEST_F(BenchmarkFaultsTest, PublishedFigures) {
  const std::string rest = "n: [8]\nconfigs: {a: {operator: srms_norm, inputs: {x: [4, n]}" + moved_ + "}}\n";
  EXPECT_THAT(fault_of("published: none.csv\n" + rest), StartsWith(path_ + ":1:12: published: found no file "));
  write_file(folder_ / "figures.csv", "suite,gpu,config,pass,quantity,n,provider,value\na,b\n");
  EXPECT_THAT(fault_of("published: figures.csv\n" + rest), HasSubstr("figures.csv:2:1: found 2 fields, expected 8"));
  write_file(folder_ / "figures.csv", "suite,gpu,config,pass,quantity,n,provider,value\na,b,c,d,e,x,f,1\n");
  EXPECT_THAT(fault_of("published: figures.csv\n" + rest), HasSubstr("found n 'x' and value '1', expected numbers"));
  write_file(folder_ / "figures.csv", "suite,gpu,config,pass,quantity,n,provider,value\na,b,c,d,e,1,f,-1\n");
  EXPECT_THAT(fault_of("published: figures.csv\n" + rest), HasSubstr("found the value -1, expected a number > 0"));
  write_file(folder_ / "figures.csv", "suite,gpu,config,pass,n,quantity,provider,value\n");
  EXPECT_THAT(
      fault_of("published: figures.csv\n" + rest),
      HasSubstr("figures.csv:1:1: found 'suite,gpu,config,pass,n,quantity,provider,value', expected suite,gpu,"));
  write_file(folder_ / "figures.csv",
             "\xef\xbb\xbfsuite,gpu,config,pass,quantity,n,provider,value\r\na,b,c,d,e,1,f,1\r\n");
  EXPECT_EQ(fault_of("published: figures.csv\n" + rest), "none");
}

}  // namespace
}  // namespace heddle
