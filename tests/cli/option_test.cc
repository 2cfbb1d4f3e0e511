// Numbers and names on the command line.
#include "cli/option.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/cli/process.h"

namespace heddle::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Options {
  int threads = 0;
  int64_t tokens = 200;
  uint64_t seed = 1;
  double temperature = 1.0;
  std::vector<int64_t> sizes = {1};
  std::vector<int> passes = {1};
};

// Parses `text`, words between spaces. Returns the error, or "".
std::string parse(const std::string& text, Options& options) {
  CLI::App app;
  add_number(app, "--threads", options.threads, "", Range::between(0, 1024));
  add_number(app, "--tokens", options.tokens, "", Range::at_least(0));
  add_number(app, "--seed", options.seed, "");
  add_number(app, "--temperature", options.temperature, "", Range::at_least(0));
  add_numbers(app, "--n", options.sizes, "", Range::at_least(1));
  add_choices(app, "--pass", options.passes, "", Choices<int>{{"fwd", 1}, {"bwd", 2}});
  try {
    app.parse(text);
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "";
}
std::string error_of(const std::string& text) {
  Options options;
  return parse(text, options);
}

TEST(OptionTest, NumbersAreReadAsInAConfig) {
  Options options;
  EXPECT_EQ(parse("--threads 2 --tokens 10 --seed 18446744073709551615 --temperature 1e-3 --n 3,1024,1 --pass bwd,fwd",
                  options),
            "");
  EXPECT_EQ(options.threads, 2);
  EXPECT_EQ(options.tokens, 10);
  EXPECT_EQ(options.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(options.temperature, 1e-3);
  EXPECT_THAT(options.sizes, ElementsAre(3, 1024, 1));
  EXPECT_THAT(options.passes, ElementsAre(2, 1));
  EXPECT_THAT(error_of("--tokens 010"), HasSubstr("--tokens: found '010', whose leading 0 makes it octal"));
}

TEST(OptionTest, WhatIsNotGivenKeepsItsDefault) {
  Options options;
  EXPECT_EQ(parse("", options), "");
  EXPECT_EQ(options.tokens, 200);
  EXPECT_THAT(options.sizes, ElementsAre(1));
}

TEST(OptionTest, ErrorsSayWhatWasFoundAndExpected) {
  EXPECT_EQ(error_of("--threads -1"), "--threads: found '-1', expected an integer in [0, 1024]");
  EXPECT_EQ(error_of("--threads 100000"), "--threads: found '100000', expected an integer in [0, 1024]");
  EXPECT_EQ(error_of("--tokens -1"), "--tokens: found '-1', expected an integer >= 0");
  EXPECT_EQ(error_of("--tokens 1e3"), "--tokens: found '1e3', expected an integer >= 0");
  EXPECT_EQ(error_of("--tokens 0x10"), "--tokens: found '0x10', expected an integer >= 0");
  EXPECT_EQ(error_of("--seed -1"), "--seed: found '-1', expected a non-negative integer");
  EXPECT_EQ(error_of("--seed 18446744073709551616"),
            "--seed: found '18446744073709551616', which 64 bits cannot hold, expected a non-negative integer");
  EXPECT_EQ(error_of("--temperature nan"), "--temperature: found 'nan', expected a number >= 0");
  EXPECT_EQ(error_of("--temperature inf"), "--temperature: found 'inf', expected a number >= 0");
  EXPECT_EQ(error_of("--n 1024,0"), "--n: found '0', expected an integer >= 1");
  EXPECT_EQ(error_of("--n 8,16,8"), "--n: found 8 twice, expected each number once");
  EXPECT_EQ(error_of("--n 1024,,2"), "--n: found '', expected an integer >= 1");
  EXPECT_EQ(error_of("--pass fdw"), "--pass: found 'fdw', expected one of fwd, bwd; did you mean 'fwd'?");
  EXPECT_EQ(error_of("--pass 1"), "--pass: found '1', expected one of fwd, bwd");
}

// Every numeric option of every command is read by the same reader.
TEST(OptionTest, EveryCommandRefusesWhatIsNoNumber) {
  const std::vector<std::vector<std::string>> commands = {
      {"generate", "run", "--tokens", "-1"},
      {"generate", "run", "--temperature", "nan"},
      {"generate", "run", "--top-k", "1.5"},
      {"generate", "run", "--top-p", "1.5"},
      {"generate", "run", "--seed", "-1"},
      {"generate", "run", "--threads", "1025"},
      {"train", "a.yaml", "--threads", "100000"},
      {"eval", "run", "--threads", "-1"},
      {"gradcheck", "--threads", "x"},
      {"bench", "--threads", "1e2"},
      {"bench", "--n", "0"},
      {"run-layer", "a.yaml", "--inputs", "a", "--outputs", "b", "--threads", "-1"}};
  for (const std::vector<std::string>& command : commands) {
    const testing::Finished finished = testing::run_heddle(command);
    const std::string &option = command[command.size() - 2], &value = command.back();
    EXPECT_EQ(finished.code, 2) << option;
    EXPECT_THAT(finished.err, HasSubstr("error: " + option + ": found '" + value + "', expected a"));
    EXPECT_LT(finished.err.size(), 200u) << finished.err;
  }
  EXPECT_THAT(testing::run_heddle({"gradcheck", "--dtype", "float23"}).err,
              HasSubstr("error: --dtype: found 'float23', expected one of float64, float32, bfloat16, float16; did you "
                        "mean 'float32'?"));
}

// What a shell makes of a variable without a value is no path, and must not mean what no option at all means.
TEST(OptionTest, EveryPathOfEveryCommandIsNotEmpty) {
  const std::vector<std::vector<std::string>> commands = {{"train", "a.yaml", "--out"},
                                                          {"train", "a.yaml", "--resume"},
                                                          {"train", "a.yaml", "--init-from"},
                                                          {"tokenize", "a.txt", "--out"},
                                                          {"tokenize", "a.txt", "--out", "a.bin", "--tokenizer"},
                                                          {"eval", "run", "--data"},
                                                          {"generate", "run", "--prompt-file"},
                                                          {"export", "run", "--out"},
                                                          {"compare", "a.yaml", "--json"},
                                                          {"compare", "a.yaml", "--plot"},
                                                          {"memory", "a.yaml", "--json"},
                                                          {"memory", "a.yaml", "--snapshot"},
                                                          {"memory", "a.yaml", "--trace"},
                                                          {"memory", "a.yaml", "--plot"},
                                                          {"run-layer", "a.yaml", "--outputs", "b", "--inputs"},
                                                          {"run-layer", "a.yaml", "--inputs", "b", "--outputs"},
                                                          {"bench", "--json"},
                                                          {"bench", "--csv"},
                                                          {"bench", "--plot"},
                                                          {"plot", "run", "--out"}};
  for (std::vector<std::string> command : commands) {
    const std::string option = command.back();
    command.emplace_back("");
    const testing::Finished finished = testing::run_heddle(command);
    EXPECT_EQ(finished.code, 2) << command[0] << option;
    EXPECT_THAT(finished.err, HasSubstr("error: " + option + ": found '', expected ")) << command[0];
  }
}

}  // namespace
}  // namespace heddle::cli
